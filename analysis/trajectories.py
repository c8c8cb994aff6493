"""Head scores and in-context-learning scores over training, with intervals, nulls, chance and onset brackets."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from sih.analysis import style

from sih.results.trajectories import Trajectories, Trajectory


def draw(data: Trajectories, emergence: dict, folder: Path, title: str) -> list[Path]:
    """One panel a score of the headline, heads on the left and in-context learning on the right."""
    columns = [[s for s in data.headline if s.kind == kind] for kind in ("heads", "icl")]
    rows = max(map(len, columns))
    figure, axes = plt.subplots(
        rows, 2, figsize=(9, 1.75 * rows + 0.9), sharex=True, squeeze=False, layout="constrained"
    )
    onsets = {row["series"]: row for row in emergence["series"]}
    for column, (series_list, colour) in enumerate(zip(columns, style.COLOURS, strict=False)):
        for row in range(rows):
            if row >= len(series_list):
                axes[row][column].set_visible(False)
                axes[row - 1][column].xaxis.set_tick_params(labelbottom=True)
                continue
            _panel(axes[row][column], data.steps, series_list[row], onsets[series_list[row].name], colour)
        axes[len(series_list) - 1][column].set_xlabel("training step (log scale)")
    figure.suptitle(f"{title}: attention heads (left) and in-context learning (right) over training", fontsize=11)
    return style.save(figure, folder, "trajectories")


def _panel(axes: Axes, steps: np.ndarray, series: Trajectory, onset: dict, colour: str) -> None:
    x_C = np.log2(steps + 1)
    low_C, high_C = style.document_interval(series)
    seen = np.isfinite(series.value_C)
    axes.fill_between(x_C[seen], low_C[seen], high_C[seen], color=colour, alpha=0.2, linewidth=0)
    axes.plot(x_C[seen], series.value_C[seen], color=colour, marker="o", markersize=3, linewidth=1.4)
    if series.null_C is not None:
        axes.plot(x_C[seen], series.null_C[seen], color=style.GREY, linestyle="--", linewidth=1, label="largest null")
    if series.chance is not None:
        word = "none" if series.sign < 0 else "chance"
        axes.axhline(series.chance, color=style.GREY, linestyle=":", linewidth=1, label=word)
    note = "no onset by the criteria"
    if onset["emerged"]:
        left, right = (np.log2(onset[k] + 1) for k in ("cell_lo_step", "cell_hi_step"))
        axes.axvspan(left, right, color=style.COLOURS[4], alpha=0.3, linewidth=0, label="onset bracket")
        axes.axvline(onset["t50_log2"], color=style.COLOURS[4], linewidth=1.2)
        note = f"half-rise at {onset['t50_step']:,.0f}"
    heads = f", {', '.join(series.heads[:3])}{'...' if len(series.heads) > 3 else ''}" if series.heads else ""
    axes.set_title(f"{series.label}{heads}")
    axes.annotate(note, (1, 1.02), xycoords="axes fraction", ha="right", fontsize=8, color="#444444")
    axes.set_ylabel(series.unit)
    if series.sign < 0:
        axes.invert_yaxis()
        axes.set_ylabel(f"{series.unit} (up: better)")
    axes.legend(loc="upper left")
    style.step_axis(axes, steps)
