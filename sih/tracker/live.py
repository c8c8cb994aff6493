"""A sweep on the dashboard while it runs: a W&B run of its own, which the publication at the end replaces."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

from sih.config import EmergenceConfig, TrackerConfig
from sih.results.run import Run
from sih.tracker.record import LIVE, SUPERSEDED, Record


class Live(Protocol):
    """Called with each step that has been measured."""

    def __call__(self, step: int) -> None: ...


@contextmanager
def live_run(options: TrackerConfig, run: Run, emergence: EmergenceConfig, console: Console) -> Iterator[Live]:
    """Log a few numbers of every checkpoint as it is measured, with `tracker.live=true`; otherwise nothing.

    If W&B is lost on the way, that is said once, and no result is lost.
    """
    if not options.live or options.mode == "disabled":
        yield lambda step: None
        return
    import wandb  # takes two seconds, so only for a live view

    from sih.results.trajectories import Trajectories
    from sih.tracker.contents import progress_scalars
    from sih.tracker.publisher import open_run

    opened: list[wandb.Run] = []

    def log(step: int) -> None:
        if not opened:  # the settings are written only now
            run_id = secrets.token_hex(4)
            _remember(run_id, options, run)
            opened.append(open_run(run, options, "live", LIVE, {}, run_id))
            if url := opened[0].url:
                console.print(f"Live: {url}", soft_wrap=True, highlight=False)
            opened[0].define_metric("*", step_metric="train_step")
        opened[0].log(progress_scalars(Trajectories(run, emergence, [step]), step))

    lost = False

    def logged(step: int) -> None:
        nonlocal lost
        if lost:
            return
        try:
            log(step)
        except wandb.errors.Error as error:
            lost = True
            console.print(f"[yellow]no live view: {error}[/yellow]", soft_wrap=True)

    try:
        yield logged
    finally:
        for live in opened:
            try:
                live.tags = (SUPERSEDED,)
                live.finish()
            except (wandb.errors.Error, TimeoutError) as error:
                console.print(f"[yellow]live view: {error}[/yellow]", soft_wrap=True)


def _remember(run_id: str, options: TrackerConfig, run: Run) -> None:
    """Record the W&B run before it is created: the next publication supersedes it even if this process is killed."""
    if options.mode == "online":
        record = Record.read(run)
        record.to_supersede.append("/".join(p for p in (options.entity, options.project, run_id) if p))
        record.write(run)
