"""Trajectories measured elsewhere: tables with the columns step, series and value, and their uncertainty if known.

Optional columns: `document` (values by document, which are resampled), or `n` and `se` (a mean's standard error; for
shares n alone is enough), and `sign` (-1 for losses) and `delta` (the smallest rise that counts) of a series.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sih.emergence.onset import jitter_sd, octaves
from sih.errors import SihError
from sih.results.trajectory import Trajectory

PSEUDO = 200  # stand-in documents for a table that has none


def read_trajectories(files: Sequence[tuple[str, Path]]) -> tuple[list[int], list[Trajectory], dict[str, str]]:
    """The steps of all tables together, their series, and how each series is resampled.

    Args:
        files: (kind, file) with kind heads or icl; .csv or .parquet.

    A series without documents is resampled parametrically, with independent normal errors. Their size is its `se`,
    a share's binomial error when only `n` is given, or its own checkpoint jitter when neither is.

    Raises:
        SihError: unreadable file; missing or repeated columns, rows or names; values that are not numbers; no rows.
    """
    tables = [(kind, file, _read(file)) for kind, file in files]
    steps = sorted({int(s) for _, _, table in tables for s in table["step"]})
    found: list[Trajectory] = []
    notes: dict[str, str] = {}
    for kind, file, table in tables:
        for name, rows in table.groupby("series", sort=False):
            if str(name) in notes:
                raise SihError(f"{file}: series {name} is in both tables; expected distinct names")
            trajectory, notes[str(name)] = _one(kind, file, str(name), rows, steps)
            found.append(trajectory)
    return steps, found, notes


def _read(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise SihError(f"{file} cannot be read as a table: {error}") from None
    if missing := [c for c in ("step", "series", "value") if c not in table]:
        raise SihError(f"{file} has no column {missing[0]}; expected step, series, value and optionally document")
    if table.empty:
        raise SihError(f"{file} has no rows")
    for column in ("step", "value"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = numbers.isna() & table[column].notna() if column == "value" else numbers.isna() | (numbers % 1 != 0)
        wanted = "a number" if column == "value" else "a whole number"
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise SihError(f"{file}, row {row + 2}: {column} is {table[column].iloc[row]}; expected {wanted}")
        table[column] = numbers
    if (table["step"] < 0).any():
        raise SihError(f"{file}: steps must not be negative; got {int(table['step'].min())}")
    keys = ["series", "step", *(["document"] if "document" in table else [])]
    if (repeated := table.duplicated(keys)).any():
        again = table[repeated].iloc[0]
        raise SihError(f"{file}: {', '.join(f'{k} {again[k]}' for k in keys)} appears twice; expected one row each")
    return table


def _one(kind: str, file: Path, name: str, rows: pd.DataFrame, steps: list[int]) -> tuple[Trajectory, str]:
    sign, delta = (int(_constant(file, name, rows, "sign", 1)), _constant(file, name, rows, "delta", 0.0))
    if sign not in (1, -1):
        raise SihError(f"{file}: sign of {name} is {sign}; expected 1 or -1")
    if "document" in rows and rows["document"].notna().all():
        wide = rows.pivot(index="document", columns="step", values="value").reindex(columns=steps)
        numerator_DC, denominator_DC = wide.to_numpy(dtype=float), wide.notna().to_numpy(dtype=float)
        pool, documents, note = "documents", [str(d) for d in wide.index], "documents"
        numerator_DC = np.nan_to_num(numerator_DC)
    else:
        numerator_DC, note = _parametric(name, rows.set_index("step").reindex(steps), steps)
        denominator_DC = np.ones_like(numerator_DC)
        pool, documents = f"errors of {name}", [str(d) for d in range(PSEUDO)]
    found = Trajectory(name, kind, pool, documents, numerator_DC, denominator_DC, sign, delta, headline=False)
    return found, note  # no headline: each series is judged by itself, however many the table has


def _parametric(name: str, table: pd.DataFrame, steps: list[int]) -> tuple[np.ndarray, str]:
    """Stand-in documents whose mean is the value and whose standard error is the value's, checkpoint by checkpoint."""
    value_C = table["value"].to_numpy(dtype=float)
    if "se" in table:
        error_C, note = table["se"].to_numpy(dtype=float), "no documents: resampled parametrically from se"
    elif "n" in table and ((value_C >= 0) & (value_C <= 1) | np.isnan(value_C)).all():
        error_C = np.sqrt(value_C * (1 - value_C) / table["n"].to_numpy(dtype=float))
        note = "no documents: resampled parametrically, a share of n"
    else:
        seen = np.isfinite(value_C)
        noise = jitter_sd(octaves(np.array(steps))[seen], value_C[seen])
        error_C = np.full(len(value_C), 0.0 if math.isnan(noise) else noise)
        note = "no documents and no se: resampled parametrically from the jitter between checkpoints"
    rng = np.random.default_rng(list(name.encode()))
    noise_DC = rng.normal(size=(PSEUDO, len(value_C)))
    noise_DC -= noise_DC.mean(0)
    noise_DC /= noise_DC.std(0)
    return value_C + noise_DC * np.nan_to_num(error_C) * math.sqrt(PSEUDO), note


def _constant(file: Path, name: str, rows: pd.DataFrame, column: str, default: float) -> float:
    if column not in rows:
        return default
    values = pd.to_numeric(rows[column], errors="coerce").unique()
    if len(values) != 1 or math.isnan(values[0]):
        raise SihError(f"{file}: {column} of {name} is {', '.join(map(str, values))}; expected one number for a series")
    return float(values[0])
