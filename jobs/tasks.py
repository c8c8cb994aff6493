"""What a job does: measure some checkpoints, or conclude a sweep. Pickled, so it carries the composed config."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import submitit
from rich.console import Console

from sih import model as models
from sih.checkpoints.schedule import in_ranges
from sih.claims import Claims
from sih.conclude import conclude
from sih.config import Config
from sih.errors import SihError
from sih.loop import measure_all
from sih.results import locate
from sih.survey import is_measured, survey


def measure_steps(
    config: Config, steps: list[int], since: datetime, console: Console, device: str | None = None, wait: bool = False
) -> dict[int, str]:
    """Measure these steps of the sweep that began at `since`; returns the failed ones and why.

    What is measured is left alone; what another living process is measuring too, or with `wait` until it has ended.
    """
    part = replace(config, steps=steps, tracker=replace(config.tracker, live=False))
    work = survey(part, console, since)
    return measure_all(work, models.choose_device(device or config.device), console, wait) if work.todo else {}


@contextmanager
def _in_one_sentence() -> Generator[None]:
    """The log ends with what is wrong and not with where; SLURM sees a failed job either way."""
    try:
        yield
    except (SihError, OSError) as error:
        raise SystemExit(f"sih: {error}") from None


@dataclass
class Chunk:
    """One task of a job array. Run again (requeued, preempted, out of time) it goes on where it was."""

    config: Config
    steps: list[int]
    since: datetime

    def __call__(self) -> dict[int, str]:
        wanted, gpus = self.config.device, self.config.launcher.gpus
        with _in_one_sentence():
            device = "cuda" if wanted == "auto" and gpus else None  # never the CPU where a GPU was asked for
            return measure_steps(self.config, self.steps, self.since, Console(), device)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues again when SLURM ends the task early."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass
class Finish:
    """The job behind an array: relate, draw, report and publish what is there, and say what is not."""

    config: Config
    steps: list[int]
    since: datetime

    def __call__(self) -> list[int]:
        """The steps without a result."""
        with _in_one_sentence():
            return self._conclude()

    def _conclude(self) -> list[int]:
        console, store = Console(), locate(self.config).store
        missing = [step for step in self.steps if not is_measured(store, step, self.config, self.since)]
        for step in missing:
            if reason := store.failure(step):
                console.print(f"step {step} failed: {reason}", soft_wrap=True)
        elsewhere = Claims(store.root, self.config.launcher.stale_after).living()
        for step in missing:
            if step in elsewhere:
                console.print(f"step {step} is claimed by {elsewhere[step]}, at work or just dead", soft_wrap=True)
        if lost := [step for step in missing if not store.failure(step)]:
            lost_steps = in_ranges(lost, self.steps)
            console.print(f"without a result: steps {lost_steps}; the same command measures them", soft_wrap=True)
        if not store.steps():
            raise SihError("no checkpoint could be measured; the jobs' logs are beside this one's")
        conclude(self.config, store, console)
        return missing
