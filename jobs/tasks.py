"""What a job does: measure some checkpoints, or conclude a sweep. It is pickled with the composed config."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import submitit
from rich.console import Console

from sih.checkpoints.schedule import in_ranges
from sih.config import Config, folder_of
from sih.errors import SihError
from sih.models.memory import choose_device
from sih.results.cells import why_failed
from sih.results.claims import Claims
from sih.results.run import Record, Run
from sih.running.conclude import conclude
from sih.running.loop import label_of, measure_all
from sih.running.survey import chosen_scores, is_measured, survey


def measure_steps(
    config: Config, steps: list[int], since: datetime, console: Console, device: str | None = None, wait: bool = False
) -> dict[int, str]:
    """Measure these steps of the sweep that began at `since`; returns the failed ones and why.

    Steps that are already measured are skipped. Steps that another living process is measuring are left to it, or with
    `wait` until it has ended.
    """
    part = replace(config, steps=steps, tracker=replace(config.tracker, live=False))
    work = survey(part, console, since)
    return measure_all(work, choose_device(device or config.device), console, wait) if work.todo else {}


@contextmanager
def _in_one_sentence() -> Generator[None]:
    """End the log with what is wrong instead of a traceback; SLURM sees a failed job either way."""
    try:
        yield
    except (SihError, OSError) as error:
        raise SystemExit(f"sih: {error}") from None


@dataclass
class Chunk:
    """One task of a job array. When run again (requeued, preempted, out of time), it continues where it was."""

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
    """The job after an array: answer, draw, report and publish what is there, and say what is missing.

    It carries the run's record, so it needs neither the checkpoints nor the network.
    """

    config: Config
    steps: list[int]
    since: datetime
    record: Record

    def __call__(self) -> list[int]:
        """Conclude the sweep; returns the steps that lack a result for some score."""
        with _in_one_sentence():
            return self._conclude()

    def _conclude(self) -> list[int]:
        console, run = Console(), Run(folder_of(self.config), self.record)
        scores = chosen_scores(self.config)
        cells = {name: run.scores[name] for name in scores}
        lacking = {
            step: {
                n: c
                for n, c in cells.items()
                if run.record.wants(n, step) and not is_measured(c, step, self.config.force, self.since)
            }
            for step in self.steps
        }
        missing = [step for step in self.steps if lacking[step]]
        failed = {step: reason for step in missing if (reason := why_failed(step, lacking[step], len(scores)))}
        for step, reason in failed.items():
            console.print(f"step {step} failed: {reason}", soft_wrap=True)
        elsewhere = Claims(run.root, self.config.launcher.stale_after).living()
        for step in missing:
            for holder in {
                elsewhere[label] for c in lacking[step].values() if (label := label_of(step, c)) in elsewhere
            }:
                console.print(f"step {step} is claimed by {holder}, which is at work or just ended", soft_wrap=True)
        if lost := [step for step in missing if step not in failed]:
            lost_steps = in_ranges(lost, self.steps)
            console.print(f"without a result: steps {lost_steps}; the same command measures them", soft_wrap=True)
        if not run.steps():
            raise SihError("no checkpoint could be measured; the jobs' logs are beside this one's")
        conclude(self.config, run, scores, console)
        return missing
