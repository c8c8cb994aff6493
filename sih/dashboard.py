"""Save the dashboard to wandb.ai: `python -m sih.dashboard model=... tracker=online`."""

from rich.console import Console

from sih.command import READING, command
from sih.config import Config
from sih.errors import SihError


def run(config: Config) -> int:
    """Save a view of all published models, and a report on this one."""
    if config.tracker.mode != "online":
        raise SihError(
            f"tracker.mode={config.tracker.mode}: a dashboard is saved on the server; use tracker=online, "
            "or look at an offline run with `wandb leet run`"
        )
    from sih.running.reading import views_of
    from sih.tracker.access import check_access

    check_access(config.tracker)
    views = views_of(config)
    from sih.tracker.views import save

    known = views.run.record.model.get("tokens_per_step") is not None
    of_all = config.axis or ("tokens" if known else "steps")  # as for several models together
    for what, url in save(config.tracker, views.run, views.on_axis(), of_all):
        Console().print(f"{what + ':':<8}{url}", soft_wrap=True, highlight=False)
    return 0


main = command(run, (*READING, "tracker"))

if __name__ == "__main__":
    main()
