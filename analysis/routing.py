"""Is a rise in relation index per opportunity a change of where heads look, or of what they write there?"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sih.analysis import style

from sih.emergence.time_axis import axis_of


def draw(emergence: dict, folder: Path, title: str) -> list[Path]:
    """One panel per family of relations: both parts of the change since the base, and their sum."""
    rows = [r for r in emergence["heads"] if r["series"] in emergence["headline"] and r["routing"]["heads"]]
    if not rows:
        return []
    steps = np.array(emergence["steps"])
    figure, axes = plt.subplots(
        1, len(rows), figsize=(4.3 * len(rows) + 0.6, 3.3), squeeze=False, sharey=True, layout="constrained"
    )
    for ax, row in zip(axes[0], rows, strict=True):
        found = row["routing"]
        x_C = np.log2(steps + 1)
        ax.axhline(0, color=style.GREY, linewidth=0.8)
        ax.plot(
            x_C,
            found["routing_C"],
            color=style.COLOURS[0],
            **style.dots(x_C, 3),
            label="routing: events per opportunity",
        )
        ax.plot(x_C, found["ov_C"], color=style.COLOURS[1], **style.dots(x_C, 3), label="OV: share per event")
        ax.plot(x_C, found["total_C"], color="black", linewidth=1.2, label="both: index per opportunity")
        heads = found["heads"]
        ax.set_title(f"{row['label']}, {heads} head{'s' if heads > 1 else ''}")
        ax.set_xlabel(f"{axis_of(emergence).words} (log scale)")
        style.step_axis(ax, steps, emergence, narrow=True)
    axes[0][0].set_ylabel("change since the base")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}: what the rise consists of", fontsize=11)
    return style.save(figure, folder, "routing")
