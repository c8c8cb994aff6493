"""A sweep, wherever it runs: in this process, in one process per device, or on SLURM."""

from rich.console import Console

from sih.config import Config, check_sweep
from sih.errors import SihError
from sih.running.conclude import conclude
from sih.running.progress import told_together
from sih.running.survey import Work, survey
from sih.tracker.access import check_access


def sweep(config: Config) -> int:
    """Measure what is missing, then conclude; returns the exit code that sih.sweep.run describes."""
    console = Console()
    check_sweep(config)
    check_access(config.tracker)
    if config.launcher.kind == "slurm":
        from sih.jobs import slurm

        slurm.check(config.launcher)
        return slurm.submit(survey(config, console), console)
    if config.watch:
        from sih.running.watch import watched

        return _concluded(*watched(config, console), console)
    work = survey(config, console)
    failures: dict[int, str] = {}
    if work.todo:
        from sih.models.memory import choose_device  # transformers takes seconds, so not when nothing is to measure

        device = choose_device(config.device)
        if config.launcher.kind == "processes":
            from sih.jobs.processes import measure_all
        else:
            from sih.running.loop import measure_all
        work.run.write_record()
        failures = measure_all(work, device, console)
    return _concluded(work, failures, console)


def _concluded(work: Work, failures: dict[int, str], console: Console) -> int:
    """Say what failed, and bring every view up to date; returns the exit code."""
    for line in told_together(failures, work.run.record.offered):
        console.print(line, style="red", soft_wrap=True, highlight=False)
    if not any(cells.steps() for cells in work.run.scores.values()):
        raise SihError("no checkpoint could be measured; the reasons are above")
    conclude(work.config, work.run, work.scores, console)
    return 1 if failures or work.refused else 0
