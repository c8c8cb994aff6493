"""What follows measuring: answer, draw, report and publish, each a view of the run."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from sih.config import Config
from sih.results.run import Run
from sih.running.survey import together
from sih.running.views import Views
from sih.scores import described


def conclude(config: Config, run: Run, scores: Mapping[str, Any], console: Console) -> None:
    """Bring every view of the run up to date, and print the answer; a view whose contents are unchanged is kept."""
    _describe_again(run, scores)
    run = Run(run.root, together(run.root, run.record))
    run.write_record()
    views = Views(run, config.emergence, config.suggest, axis=config.axis)
    with console.status("onsets and lags"):
        views.emergence()
    if config.figures:
        with console.status("figures and report"):
            views.figures()
            views.report()
    console.print()
    views.show(console)
    console.print(f"\nResults:    {run.root}/", soft_wrap=True, highlight=False)
    if config.figures:
        console.print(f"Figures:    {run.root}/figures/  (trajectories.png first)", soft_wrap=True, highlight=False)
        console.print(f"Report:     {run.root}/report.html", soft_wrap=True, highlight=False)
    if config.tracker.mode != "disabled":
        with console.status("publishing"):
            published = views.publish(config.tracker, config.force)
        for line in published:
            console.print(line, soft_wrap=True, highlight=False)
    if not views.made:
        console.print("Nothing has changed since the last time: no view was made again.", highlight=False)


def _describe_again(run: Run, scores: Mapping[str, Any]) -> None:
    """Update the descriptions: options such as the smallest rise change what is shown, but no measured number."""
    for name, score in scores.items():
        cells = run.scores[name]
        kept = cells.description()
        if kept is not None:
            cells.describe({"told": kept["told"], **described(score, kept["facts"])})
