"""The answer in words: one sentence, and a table for the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from sih.emergence import MIN_CHECKPOINTS

# Notes on an onset, the most important first: a word or two for the terminal's table, and a sentence.
FLAGS = {
    "too_few_checkpoints": ("few steps", "fewer than 8 checkpoints: a trajectory and a bracket, but no decision"),
    "not_above_floor": ("at chance", "rises, but its peak is not above chance or the larger null"),
    "no_emergence": ("no rise", "no rise that meets the criteria"),
    "low_support": ("few events", "too few events at more than a fifth of the checkpoints"),
    "transient": ("transient", "falls again by more than half of its rise"),
    "baseline_unobserved": ("no baseline", "the first checkpoint is later than step 1"),
    "plateau_unobserved": ("still rising", "highest at the last checkpoint: the onset is a lower bound"),
    "unresolved_step": ("one jump", "more than half of the rise lies between two neighbouring checkpoints"),
    "low_power": ("few steps", "12 checkpoints or fewer: little can be resolved"),
    "onset_at_first_cell": ("", "the half-rise lies between the first two checkpoints"),
    "undefined_boot": ("", "more than a fifth of the resamples show no rise"),
}


def sentence(rows: list[dict], pairs: list[dict], shown: list[str], suggested: Sequence[int] = ()) -> str:
    """The answer, no stronger than the data: relation index and prefix matching against the first ICL score.

    `suggested`: checkpoints that would narrow an unresolved lag.
    """
    by_name = {row["series"]: row for row in rows}
    most = max(row["n_checkpoints"] for row in rows)
    if most < MIN_CHECKPOINTS:
        are = "checkpoint is" if most == 1 else "checkpoints are"
        return f"{most} {are} too few to time an onset; at least {MIN_CHECKPOINTS} are needed"
    heads = [n for n in shown if by_name[n]["kind"] == "heads"]
    icl = [n for n in shown if by_name[n]["kind"] == "icl"]
    emerged_icl = [n for n in icl if by_name[n]["emerged"]]
    emerged_heads = [n for n in heads if by_name[n]["emerged"]]
    if not emerged_heads or not emerged_icl:
        which = "no head score" if not emerged_heads else "no in-context-learning score"
        rest = [*emerged_heads, *emerged_icl]
        told = [f"{which} emerged by the criteria", *(_when(by_name[n]) for n in rest), *_disagreeing(heads, rows)]
        return "; ".join(told)
    other = emerged_icl[0]
    told = [n for n in emerged_heads if n.startswith("relation_index")][:1] + [
        n for n in emerged_heads if n == "prefix_matching"
    ]
    told = told or emerged_heads[:1]
    parts = [_when(by_name[n]) for n in told] + [_when(by_name[other])]
    verdicts = [_verdict(next(p for p in pairs if p["heads"] == n and p["icl"] == other)) for n in told]
    open_ = any(p["decision"] == "unresolved" for p in pairs if p["heads"] in told and p["icl"] == other)
    steps = ", ".join(f"{step:,}" for step in suggested)
    more = f"; measuring steps {steps} too would narrow it" if open_ and suggested else ""
    caution = "association within one run cannot exclude a common cause"
    return f"{'; '.join(parts)}: {'; '.join([*verdicts, *_disagreeing(heads, rows)])}{more}; {caution}"


def _disagreeing(shown: list[str], rows: list[dict]) -> list[str]:
    """Readings of a headline's heads that rise where it does not, or do not where it does; transient is not a rise."""
    by_name = {row["series"]: row for row in rows}
    found = []
    for name in shown:
        rises = _lasts(by_name[name])
        others = [
            r for r in rows if r.get("heads_of") == name and not {"low_support", "too_few_checkpoints"} & {*r["flags"]}
        ]
        if differ := [r["series"] for r in others if _lasts(r) != rises]:
            does = "do" if len(differ) > 1 else "does"
            verb = f"{does} not" if rises else does
            found.append(f"of the same heads, {' and '.join(differ)} {verb} rise for good, unlike {name}")
    return found


def _lasts(row: dict) -> bool:
    return bool(row["emerged"]) and "transient" not in row["flags"]


def _verdict(pair: dict) -> str:
    if pair["decision"] == "unresolved":
        return f"whether {pair['heads']} or {pair['icl']} comes first is unresolved ({pair['reason']})"
    lag, low, high = (abs(v) for v in (pair["lag_oct"], pair["ci_jump_lo"], pair["ci_jump_hi"]))
    leader, other = (pair["heads"], pair["icl"]) if pair["decision"] == "heads_lead" else (pair["icl"], pair["heads"])
    return f"{leader} leads {other} by {lag:.1f} octaves [{min(low, high):.1f}, {max(low, high):.1f}]"


def _when(row: dict) -> str:
    whole = "the rise seen so far" if "plateau_unobserved" in row.get("flags", ()) else "its rise"
    spread = ""
    if "n_members" in row:
        spread = f"; median of {row['n_emerged']} of {row['n_members']} tasks"
        spread += f", {row['first_t50_step']:,.0f} to {row['last_t50_step']:,.0f}" if row["n_emerged"] > 1 else ""
    return (
        f"{row['series']} reaches half of {whole} at step {row['t50_step']:,.0f} "
        f"(between {row['cell_lo_step']:,} and {row['cell_hi_step']:,}{spread})"
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
        note = next((few_words for flag, (few_words, _) in FLAGS.items() if flag in row["flags"]), "")
        table.add_row(row["series"], *values, when, cell, note)
    console.print(table)
    if counts := [row for row in result["heads"] if row["series"] in result["headline"]]:
        told = [f"{_short(r)} {r['n_emerged']} of {r['n_heads']} (null {r['n_control_emerged']})" for r in counts]
        console.print(f"Heads that emerge, false discovery rate 5 %: {', '.join(told)}", highlight=False)
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
        console.print(
            f"Checkpoints that would narrow the lags most: steps=[{','.join(map(str, result['suggested']))}]",
            highlight=False,
        )
    console.print(f"[bold]Answer:[/bold] {result['answer']}.", highlight=False)


def _short(row: dict) -> str:
    """relation_index (facts) -> facts."""
    return row["series"].removeprefix("relation_index (").removesuffix(")")


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
    tested = [pair for pair in result["pairs"] if pair["p_seed_perm"] is not None]
    if not tested:
        console.print(
            "[bold]Answer:[/bold] no model has four runs with both onsets, so there is no test over seeds; "
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
