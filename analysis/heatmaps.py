"""Layer x head maps of the head scores over training, one row per score, one column per checkpoint."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sih.analysis import style

from sih.emergence.telling import telling
from sih.emergence.time_axis import axis_of
from sih.results.trajectories import Trajectories

COLUMNS = 8


def draw(data: Trajectories, emergence: dict, folder: Path, title: str) -> list[Path]:
    """Eight checkpoints, even over log time and around the onsets; a cell is one head, grey with too few events.

    Draws nothing without a head score.
    """
    steps = telling(emergence, COLUMNS)
    maps = [m for m in data.maps if m.picture and data.has(m.table)]
    if not maps:
        return []
    values = data.head_maps(maps, steps)
    layers, heads = data.shape(data.tables[maps[0].table])
    width = float(np.clip(heads * 0.06, 1.1, 2.0))
    height = float(np.clip(width * layers / heads, 0.75, 2.4))
    figure, axes = plt.subplots(
        len(maps),
        len(steps),
        figsize=(width * len(steps) + 2.2, (height + 0.3) * len(maps) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for r, m in enumerate(maps):
        top = float(np.nanmax(values[m.name])) if np.isfinite(values[m.name]).any() else 0.0
        for c, step in enumerate(steps):
            ax = axes[r][c]
            grid_LH = values[m.name][c].reshape(layers, heads)
            image = ax.imshow(grid_LH, vmin=0, vmax=top or 1e-9, cmap="viridis", aspect="auto", origin="lower")
            ax.set_facecolor("#dddddd")
            for spine in ax.spines.values():
                spine.set_visible(False)
            ax.set_xticks([0, heads - 1])
            ax.set_yticks([0, layers - 1])
            ax.tick_params(length=0, labelsize=7, labelleft=c == 0, labelbottom=r == len(maps) - 1)
            if r == 0:
                ax.set_title(axis_of(emergence).moment(step), fontsize=9)
            if c == 0:
                ax.set_ylabel("layer", fontsize=8)
                name = m.label.replace(", ", "\n").replace(" ", "\n", 1 if ", " in m.label else -1)
                ax.annotate(
                    name, (-0.42, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=8,
                    fontweight="bold", annotation_clip=False,
                )  # fmt: skip
            if r == len(maps) - 1:
                ax.set_xlabel("head", fontsize=8)
        figure.colorbar(image, ax=list(axes[r]), fraction=0.02, pad=0.01).ax.tick_params(labelsize=7)
    figure.suptitle(f"{title}: every head's scores (grey: too few events; each row has its own scale)", fontsize=11)
    return style.save(figure, folder, "heatmaps")
