"""A sweep on one machine with several devices: one worker process per device, sharing the run through claims."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from multiprocessing import get_context, parent_process

import torch
from rich.console import Console
from sih.jobs.tasks import measure_steps

from sih.checkpoints.schedule import in_ranges
from sih.config import Config
from sih.errors import SihError
from sih.results.claims import Claims
from sih.running.bars import bar_of
from sih.running.loop import label_of
from sih.running.survey import Work


def devices(wanted: torch.device, parallel: int) -> list[str]:
    """One worker per GPU if no particular GPU is chosen, else `parallel` workers on the device."""
    if wanted.type == "cuda" and wanted.index is None:
        return [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    return [str(wanted)] * parallel


def measure_all(work: Work, device: torch.device, console: Console) -> dict[int, str]:
    """Like loop.measure_all, in worker processes, each with a contiguous chunk of the steps.

    The steps of a worker that dies are shared out again, as long as fewer are left each time; the step that it died on
    comes last. Steps that another sweep is measuring are waited for.

    Returns:
        The steps without a result, and why.
    """
    places = devices(device, work.config.launcher.parallel)
    work.forget_failures(work.todo)
    left, before = work.todo, len(work.todo) + 1
    with bar_of(console) as bar:
        task = bar.add_task("starting", total=len(work.todo))

        def show(running: list[int]) -> None:
            done = sum(work.measured(step) for step in work.todo)
            doing = f"steps {in_ranges(running, work.source.steps)}" if running else "starting"
            bar.update(task, completed=done, description=doing)

        while left and len(left) < before:
            before, size = len(left), -(-len(left) // len(places))
            chunks = [left[i : i + size] for i in range(0, len(left), size)]
            _until_all_end(work, chunks, places, console, show)
            undone = [[step for step in chunk if _untried(work, step)] for chunk in chunks]
            left = [step for chunk in undone for step in chunk[1:]] + [chunk[0] for chunk in undone if chunk]
    unmeasured = [step for step in work.todo if not work.measured(step)]
    return {step: work.failure(step) or "its worker ended before it" for step in unmeasured}


def _untried(work: Work, step: int) -> bool:
    """Whether some score has neither a result nor a recorded failure at this step."""
    return any(work.cells(score).failure(step) is None for score in work.missing(step))


def _until_all_end(
    work: Work, chunks: list[list[int]], places: list[str], console: Console, show: Callable[[list[int]], None]
) -> None:
    """Run one worker per chunk, each on its own device, until all have ended."""
    context = get_context("spawn")
    workers = [
        context.Process(target=_work, args=(work.config, chunk, work.since, place))
        for chunk, place in zip(chunks, places, strict=False)
    ]
    console.print(f"{len(workers)} workers on {', '.join(places[: len(workers)])}")
    claims = Claims(work.run.root, work.config.launcher.stale_after)
    try:
        with _ctrl_c_ignored():  # workers inherit this; Ctrl-C is for the parent, which ends them
            for worker in workers:
                worker.start()
        while any(worker.is_alive() for worker in workers):
            show(_being_measured(work, claims))
            time.sleep(0.5)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
    for worker in workers:
        if worker.exitcode:
            console.print(f"[yellow]a worker ended with exit code {worker.exitcode}[/yellow]")


def _being_measured(work: Work, claims: Claims) -> list[int]:
    """The steps with a cell that some process holds."""
    living = claims.living()
    return [step for step in work.todo if any(label_of(step, work.cells(score)) in living for score in work.scores)]


@contextmanager
def _ctrl_c_ignored() -> Generator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(config: Config, steps: list[int], since: datetime, device: str) -> None:
    """Measure a chunk in a worker process, silently unless it cannot go on."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        measure_steps(config, steps, since, Console(quiet=True), device, wait=True)
    except (SihError, OSError) as error:
        raise SystemExit(f"sih: {error}") from None


def _end_with_the_parent() -> None:
    """End this worker when its parent ends, since a parent that is killed cannot end its workers."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
