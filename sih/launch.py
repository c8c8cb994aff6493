"""A sweep, wherever it runs: in this process, in one for each device, or on SLURM."""

from rich.console import Console

from sih import model as models
from sih.conclude import conclude
from sih.config import Config
from sih.errors import SihError
from sih.jobs import processes, slurm
from sih.loop import measure_all
from sih.survey import survey
from sih.tracker import publisher


def sweep(config: Config) -> int:
    """As sweep.run, which it is."""
    console = Console()
    publisher.check(config.tracker)
    if config.launcher.kind == "slurm":
        slurm.check(config.launcher)
        return slurm.submit(survey(config, console), console)
    device = models.choose_device(config.device)
    work = survey(config, console)
    measure = processes.measure_all if config.launcher.kind == "processes" else measure_all
    failures = measure(work, device, console) if work.todo else {}
    for step, reason in failures.items():
        console.print(f"[red]step {step} failed:[/red] {reason}", soft_wrap=True)
    if not work.results.store.steps():
        raise SihError("no checkpoint could be measured; the reasons are above")
    conclude(config, work.results.store, console)
    return 1 if failures or work.refused else 0
