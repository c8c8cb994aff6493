"""Layer x head maps of the head scores over training, one row per score, one column per checkpoint."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sih.analysis import style

from sih.results.trajectories import Trajectories

COLUMNS = 7


def draw(data: Trajectories, folder: Path, title: str) -> list[Path]:
    """Seven checkpoints over all of training; a cell is one head, grey where it has too few events.

    Draws nothing without a head score.
    """
    chosen = sorted({int(i) for i in np.linspace(0, len(data.steps) - 1, COLUMNS).round()})
    steps = [int(data.steps[i]) for i in chosen]
    rows = [
        (m.label.replace(", ", "\n").replace(" ", "\n"), data.head_map(m, steps))
        for m in data.maps
        if m.picture and data.has(m.table)
    ]
    if not rows:
        return []
    layers, heads = (max(int(table[k].max()) for _, table in rows) + 1 for k in ("layer", "head"))
    cell = float(np.clip(layers * 0.16, 0.75, 2.6))
    figure, axes = plt.subplots(
        len(rows),
        len(steps),
        figsize=(1.25 * len(steps) + 1.6, (cell + 0.28) * len(rows) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for r, (name, table) in enumerate(rows):
        top = float(np.nan_to_num(table["value"].max(), nan=0.0)) or 1e-9
        for c, step in enumerate(steps):
            ax = axes[r][c]
            grid = np.full((layers, heads), np.nan)
            at = table[table["step"] == step]
            grid[at["layer"], at["head"]] = at["value"]
            image = ax.imshow(grid, vmin=0, vmax=top, cmap="viridis", aspect="auto", origin="lower")
            ax.set_facecolor("#dddddd")
            for spine in ax.spines.values():
                spine.set_visible(False)
            ax.set_xticks([0, heads - 1])
            ax.set_yticks([0, layers - 1])
            ax.tick_params(length=0, labelsize=7, labelleft=c == 0, labelbottom=r == len(rows) - 1)
            if r == 0:
                ax.set_title(f"step {style.short(step)}", fontsize=9)
            if c == 0:
                ax.set_ylabel(f"{name}\n\nlayer", fontsize=8)
            if r == len(rows) - 1:
                ax.set_xlabel("head", fontsize=8)
        figure.colorbar(image, ax=list(axes[r]), fraction=0.02, pad=0.01)
    figure.suptitle(f"{title}: every head's scores (grey: too few events; each row has its own scale)", fontsize=11)
    return style.save(figure, folder, "heatmaps")
