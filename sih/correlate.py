"""Onsets and lags of a sweep in the store: `python -m sih.correlate model=...`."""

import json
import math

from rich.console import Console
from rich.table import Table

from sih.config import Config, command
from sih.emergence.timing import MIN_CHECKPOINTS, Trajectory, analyse
from sih.results import find
from sih.store import Store, csv_text
from sih.trajectories import Series, Trajectories

# What the table has room for: the flag that matters most, in a word or two.
FLAG_NOTES = {
    "too_few_checkpoints": "few steps",
    "not_above_floor": "at chance",
    "no_emergence": "no rise",
    "low_support": "few events",
    "transient": "transient",
    "baseline_unobserved": "no baseline",
    "plateau_unobserved": "still rising",
    "unresolved_step": "one jump",
}


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
        "equal_weights": store.equal_weights(),
        "suspect_steps": store.suspect(),
        "headline": shown,
        "left_out": trajectories.left_out,
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
        series.documents,
        series.numerator_DC,
        series.denominator_DC,
        series.sign,
        delta[series.score],
        series.floor_C,
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
    """What a careful reviewer would sign: relation index and prefix matching against the first ICL score."""
    by_name = {row["series"]: row for row in rows}
    most = max(row["n_checkpoints"] for row in rows)
    if most < MIN_CHECKPOINTS:
        return f"{most} checkpoints are too few to time an onset; at least {MIN_CHECKPOINTS} are needed"
    heads = [n for n in shown if by_name[n]["kind"] == "heads"]
    icl = [n for n in shown if by_name[n]["kind"] == "icl"]
    emerged_icl = [n for n in icl if by_name[n]["emerged"]]
    emerged_heads = [n for n in heads if by_name[n]["emerged"]]
    if not emerged_heads or not emerged_icl:
        which = "no head score" if not emerged_heads else "no in-context-learning score"
        rest = [*emerged_heads, *emerged_icl]
        return f"{which} emerged by the criteria{'; ' + '; '.join(_when(by_name[n]) for n in rest) if rest else ''}"
    other = emerged_icl[0]
    told = [n for n in emerged_heads if n.startswith("relation_index")][:1] + [
        n for n in emerged_heads if n == "prefix_matching"
    ]
    told = told or emerged_heads[:1]
    parts = [_when(by_name[n]) for n in told] + [_when(by_name[other])]
    verdicts = [_verdict(next(p for p in pairs if p["heads"] == n and p["icl"] == other)) for n in told]
    return f"{'; '.join(parts)}: {'; '.join(verdicts)}; association within one run cannot exclude a common cause"


def _verdict(pair: dict) -> str:
    if pair["decision"] == "unresolved":
        return f"whether {pair['heads']} or {pair['icl']} comes first is unresolved ({pair['reason']})"
    lag, low, high = (abs(v) for v in (pair["lag_oct"], pair["ci_jump_lo"], pair["ci_jump_hi"]))
    leader, other = (pair["heads"], pair["icl"]) if pair["decision"] == "heads_lead" else (pair["icl"], pair["heads"])
    return f"{leader} leads {other} by {lag:.1f} octaves [{min(low, high):.1f}, {max(low, high):.1f}]"


def _when(row: dict) -> str:
    return (
        f"{row['series']} reaches half of its rise at step {row['t50_step']:,.0f} "
        f"(between {row['cell_lo_step']:,} and {row['cell_hi_step']:,})"
    )


def show(result: dict, console: Console) -> None:
    """The headline onsets and the answer, within 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("score", no_wrap=True, min_width=25)
    table.add_column("base", justify="right", no_wrap=True, min_width=5)
    table.add_column("peak", justify="right", no_wrap=True, min_width=5)
    table.add_column("half-rise", justify="right", no_wrap=True, min_width=9)
    table.add_column("between", justify="right", no_wrap=True, min_width=9)
    table.add_column("", no_wrap=True, overflow="ellipsis")
    for row in result["series"]:
        if row["series"] not in result["headline"]:
            continue
        when, cell = "-", "-"
        if row["emerged"]:
            when, cell = f"{row['t50_step']:,.0f}", f"{row['cell_lo_step']:,}-{row['cell_hi_step']:,}"
        values = (f"{row['base']:.3f}", f"{row['top']:.3f}") if "base" in row else ("-", "-")
        note = next((FLAG_NOTES[f] for f in FLAG_NOTES if f in row["flags"]), "")
        table.add_row(row["series"], *values, when, cell, note)
    console.print(table)
    if result["left_out"]:
        few = result["left_out"]
        named = ", ".join(few[:2]) + (f" and {len(few) - 2} more, see left_out in emergence.json" if few[2:] else "")
        console.print(f"Too few events in every head: {named}", style="dim", highlight=False)
    for steps in result["equal_weights"]:
        console.print(
            f"[red]The same weights under steps {', '.join(map(str, steps))}:[/red] "
            "at least one label is wrong, and so is the answer",
            highlight=False,
        )
    if result["suspect_steps"]:
        steps = [int(step) for step in result["suspect_steps"]]
        console.print(
            f"[red]Measured though the audit convicts them:[/red] steps {', '.join(map(str, steps))}", highlight=False
        )
    console.print(f"[bold]Answer:[/bold] {result['answer']}.", highlight=False)


def run(config: Config) -> int:
    """Relate what the store holds and print the table."""
    store = find(config)
    _, result = correlate(store, config)
    console = Console()
    show(result, console)
    console.print(f"Written: {store.root}/emergence.json and emergence.csv", soft_wrap=True)
    return 0


main = command(run)

if __name__ == "__main__":
    main()
