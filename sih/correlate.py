"""Onsets and lags of a sweep in the store: `python -m sih.correlate model=...`."""

import json
import math

from rich.console import Console
from rich.table import Table

from sih.config import Config, command
from sih.emergence.timing import Trajectory, analyse
from sih.results import find
from sih.store import Store, csv_text
from sih.trajectories import Series, Trajectories

WIDTH = 80


def correlate(store: Store, config: Config) -> tuple[Trajectories, dict]:
    """Analyse a store and write emergence.json and emergence.csv into it.

    Raises:
        SihError: nothing measured yet, or the folder cannot be written.
    """
    trajectories = Trajectories(store, config.emergence, config.icl.loss.headline, config.seed)
    rows, pairs = analyse(
        [int(s) for s in trajectories.steps],
        [_trajectory(s, config.emergence.delta) for s in trajectories.series],
        config.emergence.bandwidth_oct,
        config.emergence.bootstrap,
        config.seed,
    )
    for row, series in zip(rows, trajectories.series, strict=True):
        row["heads"] = list(series.heads)
        row["chance"] = series.chance
    shown = [s.name for s in trajectories.headline]
    result = {
        "answer": sentence(rows, pairs, shown),
        "units": {
            "time": "octaves, log2(step + 1); columns ending in _step are optimiser steps",
            "lag_oct": "T50(ICL) - T50(heads), octaves; positive: heads lead",
            "intervals": "95 %: doc (documents resampled), jump (widened by the jump share), bracket (cell ends)",
        },
        "seed": config.seed,
        "bootstrap": config.emergence.bootstrap,
        "steps": [int(s) for s in trajectories.steps],
        "failed_steps": {str(k): v for k, v in store.failed().items()},
        "headline": shown,
        "series": rows,
        "pairs": pairs,
    }
    store.write_text("emergence.json", json.dumps(_finite(result), indent=2) + "\n")
    fields = list(dict.fromkeys(key for row in rows for key in row))
    store.write_text(
        "emergence.csv",
        csv_text(fields, [[_cell(row.get(key)) for key in fields] for row in rows]),
    )
    return trajectories, result


def _trajectory(series: Series, delta: dict[str, float]) -> Trajectory:
    return Trajectory(
        series.name,
        series.kind,
        series.pool,
        series.numerator_DC,
        series.denominator_DC,
        series.sign,
        delta[series.score],
    )


def _finite(value):
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value


def sentence(rows: list[dict], pairs: list[dict], shown: list[str]) -> str:
    """One sentence that a careful reviewer would sign, on prefix matching and the leading ICL series."""
    by_name = {row["series"]: row for row in rows}
    if by_name and max(row["n_checkpoints"] for row in rows) < 3:
        return f"{max(row['n_checkpoints'] for row in rows)} checkpoints are too few to speak of an onset"
    heads = [n for n in shown if by_name[n]["kind"] == "heads"]
    icl = [n for n in shown if by_name[n]["kind"] == "icl"]
    emerged_icl = [n for n in icl if by_name[n]["emerged"]]
    emerged_heads = [n for n in heads if by_name[n]["emerged"]]
    if not emerged_heads or not emerged_icl:
        which = "no head score" if not emerged_heads else "no in-context-learning score"
        rest = [*emerged_heads, *emerged_icl]
        return f"{which} emerged by the criteria{'; ' + '; '.join(_when(by_name[n]) for n in rest) if rest else ''}"
    first, other = emerged_heads[0], emerged_icl[0]
    pair = next(p for p in pairs if p["heads"] == first and p["icl"] == other)
    text = f"{_when(by_name[first])}; {_when(by_name[other])}: "
    if pair["decision"] == "unresolved":
        text += f"which comes first is unresolved ({pair['reason']})"
    else:
        lag, low, high = (abs(v) for v in (pair["lag_oct"], pair["ci_jump_lo"], pair["ci_jump_hi"]))
        leader = "heads lead" if pair["decision"] == "heads_lead" else "in-context learning leads"
        text += f"{leader} by {lag:.1f} octaves [{min(low, high):.1f}, {max(low, high):.1f}]"
    return text + "; association within one run cannot exclude a common cause"


def _when(row: dict) -> str:
    return (
        f"{row['series']} reaches half of its rise at step {row['t50_step']:,.0f} "
        f"(between {row['cell_lo_step']:,} and {row['cell_hi_step']:,})"
    )


def show(result: dict, console: Console) -> None:
    """The headline onsets and the answer, within 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("score", "left"), ("from", "right"), ("to", "right"), ("half-rise step", "right")):
        table.add_column(name, justify=justify, no_wrap=True)
    table.add_column("between", justify="right", no_wrap=True)
    table.add_column("note", no_wrap=True, overflow="ellipsis")
    for row in result["series"]:
        if row["series"] not in result["headline"]:
            continue
        note = ", ".join(f.replace("_", " ") for f in row["flags"])
        if row["emerged"]:
            when, cell = f"{row['t50_step']:,.0f}", f"{row['cell_lo_step']:,}-{row['cell_hi_step']:,}"
        else:
            when, cell = "-", "-"
        values = (f"{row['base']:.3f}", f"{row['top']:.3f}") if "base" in row else ("-", "-")
        table.add_row(row["series"], *values, when, cell, note)
    console.print(table)
    console.print(f"[bold]Answer:[/bold] {result['answer']}.", soft_wrap=False)


def run(config: Config) -> int:
    store = find(config)
    _, result = correlate(store, config)
    console = Console()
    show(result, console)
    console.print(f"Written: {store.root}/emergence.json and emergence.csv", soft_wrap=True)
    return 0


main = command(run)

if __name__ == "__main__":
    main()
