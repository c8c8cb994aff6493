"""Trajectories of the heads chosen on one half of the documents, shown on the other half."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sih.analysis import style

from sih.emergence.time_axis import axis_of

PANELS = 12  # of the first figure


def draw(emergence: dict, folder: Path, title: str) -> list[Path]:
    """One panel per head series that is not a headline: its chosen heads beside the largest null.

    The first dozen are top_heads, the others top_heads_more.
    """
    wanted = [r for r in emergence["series"] if r["kind"] == "heads" and r["series"] not in emergence["headline"]]
    wanted.sort(key=lambda r: r["heads_of"] is not None)  # the other readings last
    parts = {"top_heads": wanted[:PANELS], "top_heads_more": wanted[PANELS:]}
    return [file for name, part in parts.items() if part for file in _figure(emergence, part, folder, title, name)]


def _figure(emergence: dict, wanted: list[dict], folder: Path, title: str, file: str) -> list[Path]:
    columns = min(3, len(wanted))
    rows = -(-len(wanted) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.4 * columns + 0.4, 1.9 * rows + 0.8),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    steps = np.array(emergence["steps"])
    x_C = np.log2(steps + 1)
    for ax, row in zip(axes.flat, wanted, strict=False):
        value_C, low_C, high_C = style.arrays(row, "value", "low", "high")
        null_C = np.full(len(x_C), np.nan) if row["null"] is None else style.arrays(row, "null")[0]
        seen = np.isfinite(value_C)
        ax.fill_between(x_C[seen], low_C[seen], high_C[seen], color=style.COLOURS[0], alpha=0.2, linewidth=0)
        ax.plot(x_C[seen], null_C[seen], color=style.GREY, linestyle="--", linewidth=1, label="largest null")
        ax.plot(
            x_C[seen],
            value_C[seen],
            color=style.COLOURS[0],
            **style.dots(x_C[seen], 2.5),
            linewidth=1.3,
            label="chosen heads",
        )
        ax.set_title(row["label"], fontsize=9)
        heads = row["heads"]
        shown = ", ".join(heads[:4]) + (f" + {len(heads) - 4}" if len(heads) > 4 else "")
        ax.annotate(shown, (0.02, 0.96), xycoords="axes fraction", va="top", fontsize=8)
        style.step_axis(ax, steps, emergence, narrow=True)
    for ax in axes.flat[len(wanted) :]:
        ax.set_visible(False)
    for column in range(columns):
        last = max(r for r in range(rows) if r * columns + column < len(wanted)) if column < len(wanted) else None
        if last is not None:
            axes[last][column].set_xlabel(f"{axis_of(emergence).words} (log scale)")
            axes[last][column].xaxis.set_tick_params(labelbottom=True)
    for line in axes:
        line[0].set_ylabel("score")
    axes.flat[0].legend(loc="center left")
    figure.suptitle(f"{title}: heads chosen on one half of the documents, shown on the other", fontsize=11)
    return style.save(figure, folder, file)
