"""Layer x head maps of the head scores along training, one row a score, one column a checkpoint."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sih.analysis import style

from sih.trajectories import Trajectories

COLUMNS = 7


def draw(data: Trajectories, folder: Path, title: str) -> list[Path]:
    """Seven checkpoints over the whole of training; a cell is one head, grey where it has too few events."""
    chosen = sorted({int(i) for i in np.linspace(0, len(data.steps) - 1, COLUMNS).round()})
    steps = [int(data.steps[i]) for i in chosen]
    relations = data.relation_heads[data.relation_heads["direction"] == "forward"]
    rows: list[tuple[str, pd.DataFrame, str]] = [
        ("prefix\nmatching", data.induction_heads, "prefix_matching_score"),
        ("previous\ntoken", data.induction_heads, "previous_token_score"),
        ("copying", data.induction_heads, "copying_score"),
    ]
    for source, part in relations.groupby("source"):
        pooled = part.assign(total=part["relation_index"].fillna(0) * part["argmax_scored"])
        sums = pooled.groupby(["step", "layer", "head"], as_index=False)[["total", "argmax_scored"]].sum()
        sums["index"] = sums["total"] / sums["argmax_scored"].where(sums["argmax_scored"] >= data.config.min_events)
        rows.append((f"relation\nindex\n{source}", sums, "index"))
    layers, heads = (int(data.induction_heads[k].max()) + 1 for k in ("layer", "head"))
    cell = float(np.clip(layers * 0.16, 0.75, 2.6))
    figure, axes = plt.subplots(
        len(rows),
        len(steps),
        figsize=(1.25 * len(steps) + 1.6, (cell + 0.28) * len(rows) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for r, (name, table, column) in enumerate(rows):
        top = max(float(table[table["step"].isin(steps)][column].max()), 1e-9)
        for c, step in enumerate(steps):
            ax = axes[r][c]
            grid = np.full((layers, heads), np.nan)
            at = table[table["step"] == step]
            grid[at["layer"], at["head"]] = at[column]
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
