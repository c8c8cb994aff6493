"""Scores over the context, such as over the number of examples: one line per checkpoint, early to late."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from sih.analysis import style

from sih.emergence.time_axis import TimeAxis, axis_of
from sih.results.trajectories import Trajectories
from sih.scores import Curve

LINES = 6
COLOURS = matplotlib.colormaps["viridis_r"]


def draw(data: Trajectories, emergence: dict, folder: Path, title: str) -> list[Path]:
    """One figure for each name that the scores' curves have; draws nothing without curves."""
    figures: dict[str, list[Curve]] = {}
    for curve in data.curves:
        if data.has(curve.table):
            figures.setdefault(curve.figure, []).append(curve)
    drawn = []
    for name, curves in figures.items():
        everywhere = set.intersection(*(set(data.steps_with(curve.table)) for curve in curves))
        if everywhere:
            drawn += _figure(data, name, curves, spread(sorted(everywhere)), axis_of(emergence), folder, title)
    return drawn


def spread(steps: Sequence[int]) -> list[int]:
    """About LINES of the steps, spread evenly over log2(step + 1), with the first and the last."""
    x_C = np.log2(np.array(steps) + 1)
    return sorted({steps[int(np.abs(x_C - x).argmin())] for x in np.linspace(x_C[0], x_C[-1], LINES)})


def _figure(
    data: Trajectories,
    name: str,
    curves: Sequence[Curve],
    steps: Sequence[int],
    axis: TimeAxis,
    folder: Path,
    title: str,
) -> list[Path]:
    rows, columns = (list(dict.fromkeys(getattr(c, what) for c in curves)) for what in ("row", "label"))
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(max(3.0 * len(columns), 5.5), 2.5 * len(rows) + 1.0),
        squeeze=False,
        sharey="col",
        layout="constrained",
    )
    for ax in axes.flat:
        ax.set_visible(False)
    colour_of = {step: COLOURS(0.12 + 0.88 * n / max(1, len(steps) - 1)) for n, step in enumerate(steps)}
    moving = False
    for curve in curves:
        ax = axes[rows.index(curve.row)][columns.index(curve.label)]
        ax.set_visible(True)
        table = data.curve(curve, steps)
        _panel(ax, curve, table, colour_of)
        moving = moving or _moves(table, curve)
        ax.set_title(curve.label)
        first = len(rows) > 1 and curve.label == columns[0]
        ax.set_ylabel(f"{curve.row}\n\n{curve.unit}" if first else curve.unit)
    for step, colour in colour_of.items():
        axes[0][0].plot([], [], color=colour, label=axis.moment(step))
    axes[0][0].plot([], [], color=style.GREY, linestyle=":", label="chance")
    if moving:
        axes[0][0].plot([], [], color=colour_of[steps[-1]], linestyle=":", label="chance at the last checkpoint")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    what = columns[0] if len(columns) == 1 else "scores"
    over = " and ".join(dict.fromkeys(c.x_label for c in curves))
    figure.suptitle(f"{title}: {what} over {over}, early to late (95 % intervals)", fontsize=11)
    return style.save(figure, folder, f"curves_{name}")


def _panel(ax: Axes, curve: Curve, table: pd.DataFrame, colour_of: dict[int, tuple]) -> None:
    """Every checkpoint's line and band; chance is that of the last checkpoint, in its colour if it changes."""
    last, moves = table["step"].max(), _moves(table, curve)
    for step, of_step in table.sort_values(curve.x).groupby("step"):
        x_P = _place(of_step[curve.x], curve)
        ax.fill_between(x_P, of_step["ci_low"], of_step["ci_high"], color=colour_of[step], alpha=0.13, linewidth=0)
        ax.plot(x_P, of_step["value"], color=colour_of[step], marker="o", markersize=2.5, linewidth=1.4)
        if step == last:
            colour = colour_of[step] if moves else style.GREY
            ax.plot(x_P, of_step["chance"], color=colour, linestyle=":", linewidth=1.3, zorder=3)
    if curve.log_x:
        ticks = _ticks(sorted(table[curve.x].unique()))
        ax.xaxis.set_major_locator(FixedLocator([float(np.log2(t + 1)) for t in ticks]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: str(round(2**x - 1))))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel(f"{curve.x_label} (log scale)" if curve.log_x else curve.x_label)


def _place(values: pd.Series, curve: Curve) -> np.ndarray:
    return np.log2(values.to_numpy(dtype=float) + 1) if curve.log_x else values.to_numpy(dtype=float)


def _ticks(values: Sequence[int]) -> list[int]:
    """The measured places, without those less than half an octave before the next one kept."""
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if np.log2(kept[-1] + 1) - np.log2(value + 1) > 0.5:
            kept.append(value)
    return kept[::-1]


def _moves(table: pd.DataFrame, curve: Curve) -> bool:
    """Whether chance differs between checkpoints at some place."""
    return bool((table.groupby(curve.x)["chance"].agg(np.ptp) > 1e-9).any())
