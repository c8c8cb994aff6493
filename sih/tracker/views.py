"""The saved view and the report on wandb.ai, as code; conf/_tracker.yaml lists their panels."""

from typing import Any

import wandb
import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from sih.config import TrackerConfig
from sih.errors import SihError, first_line
from sih.results.run import Run
from sih.tracker.access import api
from sih.tracker.contents import provenance
from sih.tracker.record import CURRENT, LIVE

# Both a publication and a sweep that still runs; each is a line of its own, since a mean over runs of different
# configurations says nothing.
TABLES = ("onsets", "lags", "heads")
_SHOWN = [workspaces.Tags().isin([CURRENT, LIVE])]


# What line plots show time as: by axis, the metric one step later, since a log axis drops step 0, and its title.
TIME = {
    "steps": ("train_step_plus_1", "training step + 1 (log)"),
    "tokens": ("tokens_plus_1_step", "training tokens + one step's (log)"),
}


def panels(tracker: TrackerConfig, section: str, axis: str) -> list[Any]:
    """Line plots of one section over training, on a log axis of steps or tokens."""
    x, words = TIME[axis]
    return [
        reports.LinePlot(title=title, x=x, log_x=True, title_x=words, metric_regex=regex)
        for title, regex in tracker.dashboard.panels[section].items()
    ]


def workspace(tracker: TrackerConfig, entity: str, axis: str) -> workspaces.Workspace:
    """The view of all models that are published or being measured."""
    lines = [
        workspaces.Section(name=section, panels=panels(tracker, section, axis), is_open=True)
        for section in tracker.dashboard.panels
    ]
    answer: list[Any] = [
        *(reports.WeavePanelSummaryTable(table_name=name) for name in TABLES),
        reports.MediaBrowser(title="trajectories", media_keys=["figures/trajectories"], num_columns=1),
    ]
    maps = reports.MediaBrowser(title="heads over training", media_keys=tracker.dashboard.heatmaps, num_columns=3)
    pictures: list[Any] = [reports.MediaBrowser(media_keys=[f"figures/{name}"]) for name in tracker.dashboard.figures]
    return workspaces.Workspace(
        entity=entity,
        project=tracker.project,
        name=tracker.dashboard.name,
        sections=[
            workspaces.Section(name="The answer", panels=answer, is_open=True),
            workspaces.Section(name="Heads over training", panels=[maps], is_open=True),
            *lines,
            workspaces.Section(name="Figures", panels=pictures),
        ],
        settings=workspaces.WorkspaceSettings(x_axis="train_step" if axis == "steps" else "tokens"),
        runset_settings=workspaces.RunsetSettings(
            filters=_SHOWN,
            pinned_columns=["summary:answer", "summary:failed_checkpoints"],
        ),
    )


def report(
    tracker: TrackerConfig, entity: str, model: str, emergence: dict[str, Any], told: dict[str, Any]
) -> reports.Report:
    """A page on one model: the answer, heads, in-context learning, timing, provenance."""
    runs = reports.Runset(
        entity=entity,
        project=tracker.project,
        filters=[*_SHOWN, workspaces.Config("model.name") == model],
    )
    blocks: list[Any] = [reports.H1("The answer"), reports.P(emergence["answer"])]
    for section in tracker.dashboard.panels:
        blocks += [
            reports.H1(section),
            reports.PanelGrid(runsets=[runs], panels=panels(tracker, section, emergence["axis"])),
        ]
    timing: list[Any] = [
        *(reports.WeavePanelSummaryTable(table_name=name) for name in TABLES),
        *(reports.MediaBrowser(media_keys=[f"figures/{name}"]) for name in ("onsets", "lags")),
    ]
    blocks += [reports.H1("Timing"), reports.PanelGrid(runsets=[runs], panels=timing)]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    blocks += [
        reports.H1("Provenance"),
        reports.UnorderedList(
            [
                "settings: " + ", ".join(f"{score} {key}" for score, key in told["settings"].items()),
                f"{told['checkpoints']} checkpoints; the artifact's manifests have the sha256 of their weights",
                f"failed checkpoints: {told['failed_steps'] or 'none'}",
                f"versions: {versions}",
            ]
        ),
    ]
    return reports.Report(
        entity=entity,
        project=tracker.project,
        title=f"{model}: when do its heads form?",
        description="Written by python -m sih.dashboard from the results; the run's artifact has every number.",
        blocks=blocks,
    )


def save(tracker: TrackerConfig, run: Run, emergence: dict[str, Any], axis: str) -> list[tuple[str, str]]:
    """Save the view and the report; returns what was saved, and where.

    Args:
        emergence: the answer, with the axis that the report has.
        axis: of the view of all models, `steps` or `tokens`.

    Raises:
        SihError: the server refused, for instance because nothing was published to this project yet.

    """
    try:
        entity = tracker.entity or api(tracker).default_entity
        view = workspace(tracker, entity, axis)
        page = report(tracker, entity, run.model, emergence, provenance(run))
        view.save()
        page.save()
    except (wandb.errors.Error, ValueError) as error:  # ValueError: no such project yet
        raise SihError(
            f"the dashboard could not be saved ({first_line(error)}); publish with tracker=online first"
        ) from None
    return [("View", view.url), ("Report", page.url)]
