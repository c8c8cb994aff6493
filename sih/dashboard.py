"""Save the dashboard to wandb.ai: `python -m sih.dashboard model=... tracker=online`."""

import wandb
from rich.console import Console

from sih.command import command
from sih.config import Config, model_name
from sih.correlate import correlate
from sih.errors import SihError
from sih.results import find
from sih.tracker import publisher, views
from sih.tracker.contents import provenance


def run(config: Config) -> int:
    """Save a view of all published models, and a report on this one."""
    tracker = config.tracker
    if tracker.mode != "online":
        raise SihError(
            f"tracker.mode={tracker.mode}: a dashboard is saved on the server; use tracker=online, "
            "or look at an offline run with `wandb leet run`"
        )
    publisher.check(tracker)
    store = find(config)
    _, emergence = correlate(store, config)
    try:
        entity = tracker.entity or publisher.api(tracker).default_entity
        view = views.workspace(tracker, entity)
        page = views.report(tracker, entity, model_name(config.model), emergence, provenance(store))
        view.save()
        page.save()
    except (wandb.errors.Error, ValueError) as error:  # ValueError: no such project yet
        raise SihError(
            f"the dashboard could not be saved ({publisher.first_line(error)}); publish with tracker=online first"
        ) from None
    for what, url in (("View", view.url), ("Report", page.url)):
        Console().print(f"{what + ':':<8}{url}", soft_wrap=True, highlight=False)
    return 0


main = command(run)

if __name__ == "__main__":
    main()
