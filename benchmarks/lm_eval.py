"""Accuracies that lm-evaluation-harness measured over training, as a table for `python -m sih.correlate`.

    git clone --depth 1 https://github.com/EleutherAI/pythia
    python benchmarks/lm_eval.py pythia/evals/pythia-v1/pythia-410m/zero-shot accuracies.csv
    python -m sih.correlate icl=accuracies.csv heads=my-heads.csv

    python benchmarks/lm_eval.py pythia/evals/pythia-v1/*/zero-shot --rates

The first form writes one folder's results: a file for each step, with `acc` and `acc_stderr` for each task. `--rates`
puts every task of every folder through the gate: how many of those that surely rise emerge (by .10 and 6 standard
errors, from the mean of the first steps to that of the last), and how many of those that are flat (all steps within
2 standard errors of their mean).
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from sih.emergence.table import read_trajectories
from sih.emergence.timing import analyse

SHUFFLED = "  the flat ones, checkpoints in random order"
DELTA = 0.05  # the smallest rise that counts
FEWEST = 4  # steps in a row at either end, whose mean is compared


def read(folder: Path) -> pd.DataFrame:
    """Columns step, series, value, se and delta; tasks without an accuracy are left out."""
    rows = []
    for file in sorted(folder.glob("*.json")):
        found = re.search(r"step(\d+)", file.name)
        if not found:
            raise SystemExit(f"{file}: expected a name with step{{N}} in it")
        for task, result in json.loads(file.read_text(encoding="utf-8"))["results"].items():
            if "acc" in result and "acc_stderr" in result:
                rows.append((int(found[1]), task, result["acc"], result["acc_stderr"], DELTA))
    if not rows:
        raise SystemExit(f"{folder}: no results with acc and acc_stderr; expected lm-evaluation-harness's .json files")
    return pd.DataFrame(rows, columns=["step", "series", "value", "se", "delta"]).drop_duplicates(["step", "series"])


def kind(rows: pd.DataFrame) -> str:
    """What a task surely does: rises, is flat, or neither is sure."""
    rows = rows.sort_values("step")
    value, error = rows["value"].to_numpy(), rows["se"].to_numpy()
    rise = value[-FEWEST:].mean() - value[:FEWEST].mean()
    of_rise = np.hypot(np.sqrt((error[-FEWEST:] ** 2).sum()), np.sqrt((error[:FEWEST] ** 2).sum())) / FEWEST
    if rise >= 0.10 and rise > 6 * of_rise:
        return "surely rises"
    return "flat" if (np.abs(value - value.mean()) <= 2 * error).all() else "neither"


def shuffled(table: pd.DataFrame) -> pd.DataFrame:
    """Every series with its checkpoints in a random order, so that what trend it has is gone and its noise is not."""
    rng = np.random.default_rng(0)
    parts = [rows.assign(step=rng.permutation(rows["step"].to_numpy())) for _, rows in table.groupby("series")]
    return pd.concat(parts)


def analysed(table: pd.DataFrame) -> list[dict]:
    """The rows that `python -m sih.correlate` computes for a table."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "table.csv"
        table.to_csv(file, index=False)
        steps, trajectories, _ = read_trajectories([("icl", file)])
    return analyse(steps, trajectories, 0.5, 20, 0)[0]


def rates(folders: list[Path]) -> None:
    counts: Counter[tuple[str, bool]] = Counter()
    wrong = []
    for folder in folders:
        table = read(folder)
        kinds = {name: kind(rows) for name, rows in table.groupby("series")}
        for row in analysed(table):
            what = kinds[row["series"]]
            counts[what, row["emerged"]] += 1
            if (what, row["emerged"]) in (("surely rises", False), ("flat", True)):
                wrong.append(f"{folder.parent.name} {row['series']}: {what}, p {row.get('p_emergence', np.nan):.3f}")
        flat = table[table["series"].map(kinds) == "flat"]
        for row in analysed(shuffled(flat)) if len(flat) else ():
            counts[SHUFFLED, row["emerged"]] += 1
    print("| public accuracies | series | emerge |\n|---|---|---|")
    for what in ("surely rises", "flat", SHUFFLED, "neither"):
        print(f"| {what} | {counts[what, True] + counts[what, False]} | {counts[what, True]} |")
    print("\n".join(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="a folder and the table to write; or folders, with --rates")
    parser.add_argument("--rates", action="store_true", help="print how many series emerge instead")
    args = parser.parse_args()
    if args.rates:
        rates(args.paths)
    elif len(args.paths) != 2:
        parser.error("expected a folder and the .csv to write")
    else:
        read(args.paths[0]).to_csv(args.paths[1], index=False)
        print(f"Written: {args.paths[1]}")


if __name__ == "__main__":
    main()
