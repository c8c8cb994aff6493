"""The headline series of several runs over training, a line for each run: do the transitions come at the same time?"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sih.analysis import style

from sih.emergence.time_axis import axis_of

MOST = 9  # panels


def draw(runs: Sequence[tuple[str, int, dict]], axis: str, folder: Path, title: str) -> list[Path]:
    """One panel per headline series; `runs` are (model, seed, emergence.json). None drawn with a single run.

    Args:
        axis: `steps`, or `tokens`, where every run has its tokens per step.
    """
    names = list(dict.fromkeys(name for _, _, result in runs for name in result["headline"]))[:MOST]
    if len(runs) < 2 or not names:
        return []
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 2.3 * rows + 0.6), squeeze=False, sharex=True, layout="constrained"
    )
    models = list(dict.fromkeys(model for model, _, _ in runs))
    shared = style.shared_axis(axis, [result.get("tokens_per_step") for _, _, result in runs])
    steps_of = [style.on_shared(result["steps"], result.get("tokens_per_step"), shared) for _, _, result in runs]
    steps = np.unique(np.concatenate(steps_of))
    for ax, name in zip(axes.flat, names, strict=False):
        for n, (model, seed, result) in enumerate(runs):
            row = next((r for r in result["series"] if r["series"] == name), None)
            if row is None:
                continue
            ax.set_title(row["label"])
            x_C, value_C = np.log2(steps_of[n] + 1), np.array(row["value"], dtype=float)
            label = f"seed {seed}" if len(models) == 1 else f"{model}, seed {seed}"
            colour = style.COLOURS[n % len(style.COLOURS)]
            ax.plot(x_C, value_C, color=colour, linewidth=1.3, label=label, **style.dots(x_C, 2.5))
        style.step_axis(ax, steps, shared, narrow=True)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for column in range(columns):
        last = max(row for row in range(rows) if row * columns + column < len(names))
        axes[last][column].set_xlabel(f"{axis_of(shared).words} (log scale)")
        axes[last][column].xaxis.set_tick_params(labelbottom=True)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(f"{title}: the same score in every run")
    return style.save(figure, folder, "transitions")
