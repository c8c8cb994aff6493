"""Head scores and in-context-learning scores over training, with intervals, nulls, chance and onset brackets."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from sih.analysis import style

from sih.emergence.time_axis import axis_of

COLOUR = {"heads": style.COLOURS[0], "icl": style.COLOURS[1]}
WORDS = {"heads": "attention heads (left)", "icl": "in-context learning (right)"}


def draw(emergence: dict, folder: Path, title: str) -> list[Path]:
    """One panel per headline score, heads on the left and in-context learning on the right."""
    shown = [row for row in emergence["series"] if row["series"] in emergence["headline"]]
    columns = [[row for row in shown if row["kind"] == kind] for kind in ("heads", "icl")]
    columns = [column for column in columns if column]
    rows = max(map(len, columns), default=0)
    if not rows:
        return []
    figure, axes = plt.subplots(
        rows,
        len(columns),
        figsize=(4.5 * len(columns), 1.9 * rows + 0.9),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    steps = np.array(emergence["steps"])
    by_name = {row["series"]: row for row in emergence["series"]}
    for column, of_kind in enumerate(columns):
        for place in range(rows):
            if place >= len(of_kind):
                axes[place][column].set_visible(False)
                axes[place - 1][column].xaxis.set_tick_params(labelbottom=True)
                continue
            row = of_kind[place]
            members = [by_name[name] for name in row["members"]]
            _panel(axes[place][column], steps, row, members, COLOUR[row["kind"]], emergence)
        axes[len(of_kind) - 1][column].set_xlabel(f"{axis_of(emergence).words} (log scale)")
    told = " and ".join(WORDS[of_kind[0]["kind"]] for of_kind in columns)
    figure.suptitle(f"{title}: {told} over training", fontsize=11)
    return style.save(figure, folder, "trajectories")


def _panel(axes: Axes, steps: np.ndarray, row: dict, members: list[dict], colour: str, emergence: dict) -> None:
    """A family's members are thin lines without a band, since its own line is their mean."""
    x_C = np.log2(steps + 1)
    for member in members:
        (member_C,) = style.arrays(member, "value")
        axes.plot(x_C, member_C, color=colour, linewidth=0.6, alpha=0.6)
    value_C, low_C, high_C = style.arrays(row, "value", "low", "high")
    seen = np.isfinite(value_C)
    axes.fill_between(x_C[seen], low_C[seen], high_C[seen], color=colour, alpha=0.2, linewidth=0)
    axes.plot(x_C[seen], value_C[seen], color=colour, linewidth=1.4, **style.dots(x_C[seen], 3))
    if row["null"] is not None:
        (null_C,) = style.arrays(row, "null")
        axes.plot(x_C[seen], null_C[seen], color=style.GREY, linestyle="--", linewidth=1, label="largest null")
    if row["chance"] is not None:
        word = "none" if row["sign"] < 0 else "chance"
        axes.axhline(row["chance"], color=style.GREY, linestyle=":", linewidth=1, label=word)
    if row["kind"] == "heads":
        style.expected_induction(axes, steps, emergence)
    note = "no onset"
    if row["emerged"]:
        left, right = (np.log2(row[k] + 1) for k in ("cell_lo_step", "cell_hi_step"))
        axes.axvspan(left, right, color=style.COLOURS[4], alpha=0.3, linewidth=0, label="onset bracket")
        axes.axvline(row["t50_log2"], color=style.COLOURS[4], linewidth=1.2)
        note = f"half-rise at {axis_of(emergence).moment(row['t50_step'])}"
        note += f", median of {row['n_emerged']}" if members else ""
    of = ", ".join(row["heads"]) if len(row["heads"]) <= 2 else f"{len(row['heads'])} heads"
    of = f"{len(members)} tasks" if members else of
    axes.set_title(f"{row['label']}{f', {of}' if of else ''}", pad=16)
    axes.annotate(note, (0, 1.03), xycoords="axes fraction", fontsize=8, color="#444444")
    axes.set_ylabel(row["unit"])
    if row["sign"] < 0:
        axes.invert_yaxis()
        axes.set_ylabel(f"{row['unit']} (up: better)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best" if members else "upper left")
    style.step_axis(axes, steps, emergence)
