"""What follows the measuring: relate, draw, answer, report and publish, each a view of the store."""

from rich.console import Console

from sih import report
from sih.config import Config, model_name
from sih.correlate import correlate, show
from sih.figures import draw_all
from sih.store import Store
from sih.tracker import publisher


def conclude(config: Config, store: Store, console: Console) -> None:
    """Relate, draw, publish and answer; each is a view of the store and can be made again."""
    with console.status("onsets and lags"):
        trajectories, emergence = correlate(store, config)
    figures = []
    if config.figures:
        with console.status("figures"):
            figures = draw_all(trajectories, emergence, store.root / "figures", model_name(config.model))
    console.print()
    show(emergence, console)
    console.print(f"\nResults:    {store.root}/", soft_wrap=True, highlight=False)
    if figures:
        console.print(f"Figures:    {store.root}/figures/  (trajectories.png first)", soft_wrap=True, highlight=False)
        page = report.write(config, store, trajectories, emergence)
        console.print(f"Report:     {page}", soft_wrap=True, highlight=False)
    with console.status("publishing"):
        published = publisher.publish(config, trajectories, emergence, figures)
    for line in published:
        console.print(line, soft_wrap=True, highlight=False)
