"""A sweep on one machine with several devices: a worker process for each, which share the store by claims."""

import time
from multiprocessing import get_context

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sih.jobs.tasks import measure_steps

from sih.checkpoints.schedule import in_ranges
from sih.claims import Claims
from sih.config import Config
from sih.loop import Work


def devices(wanted: torch.device, parallel: int) -> list[str]:
    """One worker for each GPU where all of them are meant, else `parallel` workers on the device."""
    if wanted.type == "cuda" and wanted.index is None:
        return [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    return [str(wanted)] * parallel


def measure_all(work: Work, device: torch.device, console: Console) -> dict[int, str]:
    """As loop.measure_all, in worker processes. A worker that dies costs its checkpoint in progress a second try.

    Returns:
        The steps without a result, and why.
    """
    store, context = work.results.store, get_context("spawn")
    places = devices(device, work.config.launcher.parallel)
    size = -(-len(work.todo) // len(places))
    chunks = [work.todo[i : i + size] for i in range(0, len(work.todo), size)]
    fresh = {s: store.manifest(s)["measured_at"] for s in work.todo if s in set(store.steps())}  # with force
    workers = [
        context.Process(target=_work, args=(work.config, chunk, place))
        for chunk, place in zip(chunks, places, strict=False)
    ]
    for worker in workers:
        worker.start()
    console.print(f"{len(workers)} workers on {', '.join(places[: len(workers)])}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    claims = Claims(store.root, work.config.launcher.stale_after)
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("measuring", total=len(work.todo))
            while any(worker.is_alive() for worker in workers):
                done = [s for s in store.steps() if s in work.todo and fresh.get(s) != store.manifest(s)["measured_at"]]
                running = in_ranges(sorted(claims.living()), work.source.steps)
                bar.update(task, completed=len(done), description=f"steps {running}" if running else "starting")
                time.sleep(0.5)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    for worker in workers:
        if worker.exitcode:
            console.print(f"[yellow]a worker ended with {worker.exitcode}; its checkpoints went to the others[/yellow]")
    failed, measured = store.failed(), set(store.steps())
    return {s: failed.get(s, "its worker died") for s in work.todo if s in failed or s not in measured}


def _work(config: Config, steps: list[int], device: str) -> None:
    """Its own chunk."""
    measure_steps(config, steps, device)
