"""The answer on a terminal of 80 columns: a table of onsets, what was left out, and the words."""

from rich.console import Console
from rich.table import Table

from sih.emergence.answer import FLAGS
from sih.emergence.association import FEWEST_RUNS
from sih.emergence.time_axis import STEPS, TimeAxis, axis_of

NAMED = 5  # heads of a series


def show(result: dict, console: Console) -> None:
    """The headline onsets and the answer, within 80 columns."""
    axis = axis_of(result)
    rows = [_row(row, axis) for row in result["series"] if row["series"] in result["headline"]]
    names = ("score", "base", "peak", "half-rise" if axis == STEPS else "tokens", "between", "")
    width = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", expand=False)
    # Numbers are never cut; a long name gives way.
    room = max(12, min(width[0], console.width - sum(width[1:]) - len(names) + 1))
    table.add_column(names[0], no_wrap=True, overflow="ellipsis", width=room)
    for name, wide in zip(names[1:-1], width[1:-1], strict=True):
        table.add_column(name, justify="right", no_wrap=True, width=wide)
    table.add_column("", no_wrap=True, overflow="ellipsis", min_width=width[-1])
    for row in rows:
        table.add_row(*row)
    console.print(table)
    counts = [row for row in result["heads"] if row["series"] in result["headline"]]
    if counts:
        console.print("Heads that emerge, false discovery rate 5 %, in order of their onsets:", highlight=False)
    for row in counts:
        first = [head for _, head in sorted(zip(row["t50_step"], row["emerged"], strict=True))]
        named = ", ".join(first[:NAMED]) + (f" and {len(first) - NAMED} more" if len(first) > NAMED else "")
        count = f"{row['n_emerged']} of {row['n_heads']} (null {row['n_control_emerged']})"
        console.print(f"  {_short(row)}: {count}{f': {named}' if named else ''}", highlight=False)
    if result["left_out"]:
        few = result["left_out"]
        named = ", ".join(few[:2]) + (f" and {len(few) - 2} more, see left_out in emergence.json" if few[2:] else "")
        console.print(f"Too few events in every head: {named}", style="dim", highlight=False)
    for name, reason in result["damaged"].items():
        console.print(f"[red]Cannot be read, so left out:[/red] {name} ({reason})", soft_wrap=True, highlight=False)
    for steps in result["equal_weights"]:
        console.print(
            f"[red]The same weights under steps {', '.join(map(str, steps))}:[/red] "
            "at least one label is wrong, and so is the answer",
            highlight=False,
        )
    if result["suspect_steps"]:
        steps = [int(step) for step in result["suspect_steps"]]
        console.print(
            f"[red]Measured although the audit convicts them:[/red] steps {', '.join(map(str, steps))}", highlight=False
        )
    if result["suggested"]:
        told = [f"{s:,} ({o:.1f})" for s, o in zip(result["suggested"], result["suggested_narrows_oct"], strict=True)]
        console.print(
            f"Checkpoints that would narrow the onsets most, by octaves in all: {', '.join(told)}", highlight=False
        )
    if "sensitivity" in result:
        console.print(f"{result['sensitivity']['told']}.", style="dim", highlight=False)
    console.print(f"[bold]Answer:[/bold] {result['answer']}.", highlight=False)


def _row(row: dict, axis: TimeAxis) -> tuple[str, ...]:
    """A series' name, base, peak, half-rise, bracket and note."""
    when, cell = "-", "-"
    if row["emerged"]:
        when, cell = axis.number(row["t50_step"]), "-".join(axis.number(row[f"cell_{e}_step"]) for e in ("lo", "hi"))
    values = (f"{row['base']:.3f}", f"{row['top']:.3f}") if "base" in row else ("-", "-")
    note = next((few_words for flag, (few_words, _) in FLAGS.items() if flag in row["flags"]), "")
    return row["series"], *values, when, cell, note


def _short(row: dict) -> str:
    """relation index (facts) -> facts."""
    name = str(row["series"])
    return name[name.index("(") + 1 : -1] if name.endswith(")") else name


def show_across(result: dict, console: Console) -> None:
    """Lags and the test over seeds of every headline pair, within 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("heads", no_wrap=True)
    table.add_column("in-context learning", no_wrap=True)
    for column in ("runs", "lag, oct", "r", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in result["pairs"]:
        numbers = [f"{pair[k]:.2f}" if pair[k] is not None else "-" for k in ("lag_oct", "r_seed", "p_seed_perm")]
        table.add_row(pair["heads"], pair["icl"], f"{pair['n_both_emerged']} of {pair['n_runs']}", *numbers)
    console.print(table)
    for line in _over_runs(result):
        console.print(line, highlight=False)
    tested = [pair for pair in result["pairs"] if pair["p_seed_perm"] is not None]
    if not tested:
        console.print(
            f"[bold]Answer:[/bold] no model has {FEWEST_RUNS} runs with both onsets, so there is no test over seeds; "
            "association within a run cannot exclude a common cause."
        )
        return
    best = min(tested, key=lambda pair: pair["p_seed_perm"])
    console.print(
        f"[bold]Answer:[/bold] of {len(tested)} pairs tested over seeds, the strongest is {best['heads']} with "
        f"{best['icl']}: r = {best['r_seed']:.2f} within models over {best['n_seeds']} runs, one-sided "
        f"p = {best['p_seed_perm']:.3f}, {min(1.0, best['p_seed_perm'] * len(tested)):.3f} after Bonferroni.",
        highlight=False,
    )


def _over_runs(result: dict) -> list[str]:
    """What can be said over seeds and sizes, a line each; nothing where there are too few."""
    lines = []
    axes = {row["model"]: axis_of({**result, **row}) for row in result["series"]}
    for row in result["over_seeds"]:
        if row["mean"] is None:
            continue
        spread = f"seeds differ by {row['between_sd']:.2f} octaves (sd), one run's interval by {row['within_sd']:.2f}"
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        if "series" in row:
            axis = axes[row["model"]]
            ends = " to ".join(axis.number(2 ** row[end] - 1) for end in ("low", "high"))
            lines.append(
                f"{row['model']}, {row['series']}: half-rise at {axis.moment(2 ** row['mean'] - 1)} [{ends}] over "
                f"{row['count']} seeds; {spread}"
            )
        elif row["decision"] != "unresolved":
            first = row["heads"] if row["decision"] == "heads_lead" else row["icl"]
            lines.append(
                f"{row['model']}: {first} leads, {row['heads']} to {row['icl']} {row['mean']:.2f} octaves {interval} "
                f"over {row['count']} seeds"
            )
    for row in result["over_sizes"]:
        if row["slope"] is not None:
            lines.append(
                f"{row['series']}: {row['slope']:+.2f} octaves of tokens [{row['low']:.2f}, {row['high']:.2f}] for "
                f"twice the parameters, {row['count']} models"
            )
    return lines
