"""A sweep on one machine with several devices: a worker process for each, which share the store by claims."""

import signal
import time
from collections.abc import Callable
from datetime import datetime
from multiprocessing import get_context

import torch
from rich.console import Console
from sih.jobs.tasks import measure_steps

from sih.checkpoints.schedule import in_ranges
from sih.claims import Claims
from sih.config import Config
from sih.errors import SihError
from sih.loop import Work, bar_of


def devices(wanted: torch.device, parallel: int) -> list[str]:
    """One worker for each GPU where all of them are meant, else `parallel` workers on the device."""
    if wanted.type == "cuda" and wanted.index is None:
        return [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    return [str(wanted)] * parallel


def measure_all(work: Work, device: torch.device, console: Console) -> dict[int, str]:
    """As loop.measure_all, in worker processes, each with a contiguous chunk of the steps.

    What a worker that dies leaves is shared out again, as long as that leaves less.

    Returns:
        The steps without a result, and why.
    """
    store, places = work.results.store, devices(device, work.config.launcher.parallel)
    store.forget_failures(work.todo)
    left, before = work.todo, len(work.todo) + 1
    with bar_of(console) as bar:
        task = bar.add_task("starting", total=len(work.todo))

        def show(running: list[int]) -> None:
            done = sum(work.measured(step) for step in work.todo)
            doing = f"steps {in_ranges(running, work.source.steps)}" if running else "starting"
            bar.update(task, completed=done, description=doing)

        while left and len(left) < before:
            before = len(left)
            _share_out(work, left, places, console, show)
            left = [s for s in left if not work.measured(s) and store.failure(s) is None]
    unmeasured = [step for step in work.todo if not work.measured(step)]
    return {step: store.failure(step) or "its worker ended before it" for step in unmeasured}


def _share_out(
    work: Work, steps: list[int], places: list[str], console: Console, show: Callable[[list[int]], None]
) -> None:
    """One worker for each place, until all have ended."""
    size = -(-len(steps) // len(places))
    chunks = [steps[i : i + size] for i in range(0, len(steps), size)]
    context = get_context("spawn")
    workers = [
        context.Process(target=_work, args=(work.config, chunk, work.since, place))
        for chunk, place in zip(chunks, places, strict=False)
    ]
    console.print(f"{len(workers)} workers on {', '.join(places[: len(workers)])}")
    claims = Claims(work.results.store.root, work.config.launcher.stale_after)
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            show(sorted(claims.living()))
            time.sleep(0.5)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            worker.join()
    for worker in workers:
        if worker.exitcode:
            console.print(f"[yellow]a worker ended with exit code {worker.exitcode}[/yellow]")


def _work(config: Config, steps: list[int], since: datetime, device: str) -> None:
    """In a worker process: its chunk, without a word unless it cannot go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    try:
        measure_steps(config, steps, since, Console(quiet=True), device)
    except SihError as error:
        raise SystemExit(str(error)) from None
