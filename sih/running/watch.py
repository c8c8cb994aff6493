"""A training run that is still going on: its checkpoints are measured as they appear."""

import time
from dataclasses import replace

from rich.console import Console

from sih.checkpoints.files import Sha256
from sih.checkpoints.sources import local_folder
from sih.config import Config
from sih.errors import SihError
from sih.running.survey import Work, survey


def watched(config: Config, console: Console) -> tuple[Work, dict[int, str]]:
    """Measure every checkpoint as soon as it is there as a whole, until interrupted or until `watch_until`.

    Returns:
        The work with all checkpoints that appeared, and why some of them failed.
    """
    tracker = replace(config.tracker, live=config.tracker.mode != "disabled")
    config = replace(config, tracker=tracker)
    try:
        _wait_for_the_first(config, console)
    except KeyboardInterrupt:
        raise SihError(f"{config.model.path}: stopped before a checkpoint was there as a whole") from None
    from sih.models.memory import choose_device  # transformers takes seconds, so not before there is something to do
    from sih.running.loop import measuring

    work = survey(config, console)
    work.run.write_record()
    failures: dict[int, str] = {}
    with measuring(work, choose_device(config.device), console) as measure:
        try:
            while True:
                failures |= measure(work)
                if config.watch_until is not None and max(work.steps) >= config.watch_until:
                    break
                while not (more := _appeared(work, failures)).todo:
                    time.sleep(config.watch_every)
                work = more
                work.run.write_record()
        except KeyboardInterrupt:
            console.print("Stopped watching; what was measured is kept.")
    return work, failures


def _wait_for_the_first(config: Config, console: Console) -> None:
    with console.status(f"waiting for the first checkpoint in {config.model.path}"):
        while not local_folder(config.model, Sha256(), settled_only=True).steps:
            time.sleep(config.watch_every)


def _appeared(work: Work, failures: dict[int, str]) -> Work:
    """The work with the checkpoints that are there by now; those that training has removed since stay measured."""
    source = local_folder(work.config.model, work.hashes, settled_only=True)
    steps = sorted({*work.steps, *source.steps})
    record = replace(work.run.record, offered=steps, steps=steps)
    work = replace(work, source=source, steps=steps, run=replace(work.run, record=record))
    return replace(work, todo=[s for s in source.steps if s not in failures and not work.measured(s)])
