"""A training run that is still going on: its checkpoints are measured as they appear."""

import time
from dataclasses import replace

from rich.console import Console

from sih.checkpoints.files import Sha256
from sih.checkpoints.local import LocalFolder
from sih.checkpoints.sources import local_folder
from sih.config import Config
from sih.errors import SihError
from sih.running.survey import Work, survey

_PATIENCE = 60.0  # seconds


def watched(config: Config, console: Console) -> tuple[Work, dict[int, str]]:
    """Measure every checkpoint as soon as it is there as a whole, until interrupted or until `watch_until`.

    Returns:
        The work with all checkpoints that appeared, and why some of them failed.
    """
    tracker = replace(config.tracker, live=config.tracker.mode != "disabled")
    config = replace(config, tracker=tracker)
    look = _Looks(config, console)
    try:
        with console.status(f"waiting for the first checkpoint in {config.model.path}"):
            while not ((source := look()).steps and source.tokenizer):  # "": removed since the look
                time.sleep(config.watch_every)
    except KeyboardInterrupt:
        raise SihError(f"{config.model.path}: stopped before a checkpoint was there as a whole") from None
    from sih.models.memory import choose_device  # transformers takes seconds, so not before there is something to do
    from sih.running.loop import measuring

    work = survey(config, console, source=source)
    work.run.write_record()
    failures: dict[int, str] = {}
    with measuring(work, choose_device(config.device), console) as measure:
        try:
            while True:
                failures |= measure(work)
                if config.watch_until is not None and max(work.steps) >= config.watch_until:
                    break
                while not (more := _appeared(work, look(), failures)).todo:
                    time.sleep(config.watch_every)
                work = more
                work.run.write_record()
        except KeyboardInterrupt:
            console.print("Stopped watching; what was measured is kept.")
    return work, failures


class _Looks:
    """Looks into the folder, and says once what keeps a checkpoint from being whole, when it has lasted a minute, and
    which checkpoints were removed before they were whole."""

    def __init__(self, config: Config, console: Console) -> None:
        self.config, self.console, self.hashes = config, console, Sha256()
        self.unsettled: dict[int, str] = {}  # at the last look, by step
        self.since: dict[str, float] = {}  # when a reason was first seen
        self.told: set[str] = set()

    def __call__(self) -> LocalFolder:
        source = local_folder(self.config.model, self.hashes, settled_only=True)
        gone = sorted({*self.unsettled} - {*source.unsettled} - {*source.steps})
        for step in gone:
            self.console.print(f"step {step}: removed before it was there as a whole", highlight=False)
        self.unsettled, now = source.unsettled, time.monotonic()
        self.since = {reason: self.since.get(reason, now) for reason in source.unsettled.values()}
        for reason, since in self.since.items():
            if now - since >= _PATIENCE and reason not in self.told:
                self.told.add(reason)
                self.console.print(f"Not measured until it is whole: {reason}", soft_wrap=True, highlight=False)
        return source


def _appeared(work: Work, source: LocalFolder, failures: dict[int, str]) -> Work:
    """The work with the checkpoints that are there by now; those that training has removed since stay measured."""
    steps = sorted({*work.steps, *source.steps})
    record = replace(work.run.record, offered=steps, steps=steps)
    work = replace(work, source=source, steps=steps, run=replace(work.run, record=record))
    return replace(work, todo=[s for s in source.steps if s not in failures and not work.measured(s)])
