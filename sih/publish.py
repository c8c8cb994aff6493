"""Publish a sweep that is in the store to W&B again: `python -m sih.publish model=...`."""

from rich.console import Console

from sih.command import command
from sih.config import Config, model_name
from sih.correlate import correlate
from sih.figures import draw_all
from sih.results import find
from sih.tracker import publisher


def run(config: Config) -> int:
    """Publish a store as a fresh run, unless the newest one shows the same already."""
    publisher.check(config.tracker)
    store = find(config)
    trajectories, emergence = correlate(store, config)
    figures = draw_all(trajectories, emergence, store.root / "figures", model_name(config.model))
    for line in publisher.publish(config, trajectories, emergence, figures):
        Console().print(line, soft_wrap=True, highlight=False)
    return 0


main = command(run)

if __name__ == "__main__":
    main()
