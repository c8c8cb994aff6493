"""A sweep that still runs, on the dashboard: a run of its own, which the publication at the end replaces."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import wandb
from rich.console import Console

from sih.config import Config
from sih.store import Store
from sih.tracker.contents import progress_scalars
from sih.tracker.publisher import LIVE, SUPERSEDED, Record, open_run


class Live(Protocol):
    """Told of each step that has been measured."""

    def __call__(self, step: int) -> None: ...


@contextmanager
def live_run(config: Config, store: Store, console: Console) -> Iterator[Live]:
    """Logs a few numbers of every checkpoint as it is measured, with `tracker.live=true`; otherwise nothing.

    Losing W&B on the way is said once and costs no result.
    """
    if not config.tracker.live or config.tracker.mode == "disabled":
        yield lambda step: None
        return
    opened: list[wandb.Run] = []

    def log(step: int) -> None:
        if not opened:  # the store has its config only now
            run_id = secrets.token_hex(4)
            _remember(run_id, config, store)
            opened.append(open_run(config, store, "live", LIVE, {}, run_id))
            if url := opened[0].url:
                console.print(f"Live: {url}", soft_wrap=True, highlight=False)
            opened[0].define_metric("*", step_metric="train_step")
        opened[0].log(progress_scalars(store, step, config.icl.loss.headline))

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
        for run in opened:
            try:
                run.tags = (SUPERSEDED,)
                run.finish()
            except (wandb.errors.Error, TimeoutError) as error:
                console.print(f"[yellow]live view: {error}[/yellow]", soft_wrap=True)


def _remember(run_id: str, config: Config, store: Store) -> None:
    """Before it is there: the next publication marks it superseded, whenever this process is killed."""
    tracker = config.tracker
    if tracker.mode == "online":
        record = Record.read(store)
        record.to_supersede.append("/".join(p for p in (tracker.entity, tracker.project, run_id) if p))
        record.write(store)
