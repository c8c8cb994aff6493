"""Are the early heads still the top heads at the end? The final checkpoint's top heads, traced back."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sih.analysis import style

from sih.emergence.time_axis import axis_of


def draw(emergence: dict, folder: Path, title: str) -> list[Path]:
    """Above: share of the final top heads that are already on top. Below: the final top heads' mean index."""
    rows = [r for r in emergence["heads"] if r["series"] in emergence["headline"]]
    if not rows:
        return []
    steps = np.array(emergence["steps"])
    x_C = np.log2(steps + 1)
    figure, axes = plt.subplots(
        2,
        len(rows),
        figsize=(4.3 * len(rows) + 0.6, 4.6),
        squeeze=False,
        sharey="row",
        sharex=True,
        layout="constrained",
    )
    for (above, below), row in zip(axes.T, rows, strict=True):
        found = row["overlap"]
        share_C, index_C = (np.array(found[k], dtype=float) for k in ("share", "index"))
        above.plot(x_C, share_C, color=style.COLOURS[0], **style.dots(x_C, 3))
        if found["ceiling"] is not None:  # None: no head has enough events at the end
            above.axhline(found["ceiling"], color="black", linestyle="--", linewidth=1, label="two halves at the end")
        above.axhline(found["chance"], color=style.GREY, linestyle=":", linewidth=1, label="chance")
        above.set_ylim(-0.03, 1.05)
        above.set_title(f"{row['label']}, top {found['k']}")
        below.plot(x_C, index_C, color=style.COLOURS[2], **style.dots(x_C, 3))
        shown = ", ".join(found["final"][:5]) + ("..." if len(found["final"]) > 5 else "")
        below.annotate(f"final top: {shown}", (0.02, 0.95), xycoords="axes fraction", va="top", fontsize=8)
        below.set_xlabel(f"{axis_of(emergence).words} (log scale)")
        style.step_axis(below, steps, emergence, narrow=True)
    axes[0][0].set_ylabel("share of the final set")
    axes[1][0].set_ylabel("their mean relation index")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(f"{title}: the final checkpoint's top heads, traced back", fontsize=11)
    return style.save(figure, folder, "head_overlap")
