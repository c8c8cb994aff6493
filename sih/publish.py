"""Publish a run to W&B again: `python -m sih.publish model=...`."""

from rich.console import Console

from sih.command import READING, command
from sih.config import Config
from sih.errors import SihError


def run(config: Config) -> int:
    """Publish a run as a fresh W&B run, unless the newest one already shows the same."""
    from sih.running.reading import views_of
    from sih.tracker.access import check_access

    if config.tracker.mode == "disabled":
        raise SihError("tracker=disabled publishes nothing; choose tracker=offline or tracker=online")
    check_access(config.tracker)
    views = views_of(config)
    views.figures()
    for line in views.publish(config.tracker, config.force):
        Console().print(line, soft_wrap=True, highlight=False)
    return 0


main = command(run, (*READING, "tracker", "force"))

if __name__ == "__main__":
    main()
