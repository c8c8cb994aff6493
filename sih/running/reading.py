"""What the commands that read a run share: which one, and which of its checkpoints."""

from sih.checkpoints.schedule import choose
from sih.config import Config, folder_of
from sih.errors import SihError
from sih.results.run import Run
from sih.running.views import Views


def run_of(config: Config) -> Run:
    """The run that the options name, with at least one result in it.

    Raises:
        SihError: no such run, one of another layout, or nothing measured yet.
    """
    run = Run.open(folder_of(config))
    if not run.steps():
        raise SihError(f"{run.root}: nothing measured yet; run python -m sih.sweep first")
    return run


def views_of(config: Config) -> Views:
    """The run's views, of its chosen checkpoints. Raises SihError for checkpoints that are not measured."""
    run = run_of(config)
    measured = run.steps()
    everything = config.steps in ("all", config.model.default_steps)
    chosen = measured if everything else choose(config.steps, measured)
    return Views(run, config.emergence, config.suggest, None if chosen == measured else chosen, config.axis)
