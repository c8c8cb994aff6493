"""How far a run is, and which runs there are."""

import re
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from sih import CONF
from sih.checkpoints.schedule import choose, in_ranges
from sih.config import Config, folder_of
from sih.errors import SihError
from sih.jobs.queue import queued, submitted
from sih.results.cells import Cells, why_failed
from sih.results.claims import Claims
from sih.results.run import Run, runs_in
from sih.running.survey import is_measured


def show(config: Config, console: Console) -> int:
    """Print a run's done, running, failed and missing steps, and its scores; 0 when all are done, else 1."""
    run = Run.open(folder_of(config))
    steps = run.record.steps
    if config.steps not in ("all", config.model.default_steps):
        steps = choose(config.steps, run.record.offered)
    arrays = submitted(run)
    since = datetime.fromisoformat(arrays[-1]["since"]) if arrays else datetime.min.replace(tzinfo=UTC)
    scores = run.scores
    missing = {
        step: [
            s
            for s, cells in scores.items()
            if run.record.wants(s, step) and not is_measured(cells, step, config.force, since)
        ]
        for step in steps
    }
    claims = Claims(run.root, config.launcher.stale_after).living()
    running: dict[int, str] = {}
    for label, holder in claims.items():
        running.setdefault(int(label.split(".")[0].removeprefix("step")), holder)
    failed = {
        step: reasons
        for step in steps
        if (reasons := why_failed(step, {s: scores[s] for s in missing[step]}, len(scores)))
    }
    done = [step for step in steps if not missing[step]]
    left = [s for s in steps if missing[s] and s not in running and s not in failed]
    console.print(f"[bold]{run.name}[/bold], {run.root}", soft_wrap=True, highlight=False)
    for name, found in (
        ("done", done),
        ("running", [s for s in steps if s in running]),
        ("failed", [s for s in failed if s not in running]),
        ("missing", left),
    ):
        console.print(f"  {name:<8}{len(found):>4}  {in_ranges(found, run.record.offered)}", highlight=False)
    partly = {score: sum(score in absent for absent in missing.values()) for score in scores}
    if len(set(partly.values())) > 1:
        wanted = {score: sum(run.record.wants(score, step) for step in steps) for score in partly}
        told = ", ".join(f"{score} {wanted[score] - n}" for score, n in partly.items())
        console.print(f"  by score: {told}", highlight=False)
    if left and (seconds := typical_seconds(scores, done)) is not None:
        hours = seconds * (len(left) + len(running)) / max(1, len(running)) / 3600
        console.print(
            f"  left: about {hours:.1f} h, at the median {seconds:,.0f} s of a measured checkpoint"
            + (f" by {len(running)} at a time" if len(running) > 1 else ""),
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    if left and (size := _fetched(scores, done)):
        console.print(f"  to fetch: about {size * len(left) / 1e9:,.1f} GB", highlight=False)
    for step, holder in running.items():
        console.print(f"  step {step}: {holder}", highlight=False)
    for line in told_together(failed, run.record.offered):
        console.print(f"  {line}", soft_wrap=True, highlight=False)
    try:
        for job, state in queued(run).items():
            console.print(f"  job {job}: {state}", highlight=False)
    except SihError as error:
        console.print(f"  {error}", soft_wrap=True, highlight=False)
    return 0 if done == list(steps) else 1


def typical_seconds(scores: Mapping[str, Cells], steps: Sequence[int]) -> float | None:
    """The median over these checkpoints of what each took with all scores; None where none has them all."""
    seconds = [s for s in (_seconds(scores, step) for step in steps) if s is not None]
    return statistics.median(seconds) if seconds else None


def _seconds(scores: Mapping[str, Cells], step: int) -> float | None:
    """What a measured checkpoint took: loading once, and measuring every score."""
    try:
        seconds = [cells.manifest(step)["seconds"] for cells in scores.values()]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return max(s["load"] for s in seconds) + sum(s["measure"] for s in seconds)


def _fetched(scores: Mapping[str, Cells], done: Sequence[int]) -> float:
    """Bytes of one checkpoint's weights, as the last measured one had them; 0 where none is known."""
    if not done:
        return 0
    found = next(iter(scores.values())).manifest(done[-1])["weights_files"]
    return float(sum(state[0] for state in found.values()))


def told_together(failed: Mapping[int, str], offered: list[int]) -> list[str]:
    """Why steps have no result, in few lines: each reason once, and what the audit refuses in one."""
    steps_of: dict[str, list[int]] = {}
    for step, reason in failed.items():
        steps_of.setdefault("refused" if reason.startswith("refused, ") else reason, []).append(step)
    return [
        f"left out by the audit: steps {in_ranges(steps, offered)}. Why: python -m sih.audit"
        if reason == "refused"
        else f"step{'s' if len(steps) > 1 else ''} {in_ranges(steps, offered)} failed: {reason}"
        for reason, steps in steps_of.items()
    ]


def list_runs(words: Sequence[str], console: Console) -> int:
    """Print every run in the folder of runs, with its model, scores and steps; 0 when there is any, else 1."""
    given = [word.removeprefix("output=") for word in words if re.match("output=", word)]
    default = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["output"]
    output = Path(given[-1] if given else default)
    if others := [word for word in words if not word.startswith("output=")]:
        console.print(f"sih: {others[0]}: without a run only output= is used; name a run with model=, name= or run=")
        return 2
    found = runs_in(output)
    if not found:
        console.print(f"No runs in {output}/; python -m sih.sweep makes one")
        return 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "model", "steps", "scores"):
        table.add_column(column, overflow="fold")
    for run in found:
        table.add_row(run.name, run.model, f"{len(run.steps())} of {len(run.record.steps)}", ", ".join(run.scores))
    console.print(table)
    return 0
