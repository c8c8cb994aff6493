"""When every score reaches half of its rise, with its three intervals: a forest plot."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sih.analysis import style

from sih.emergence.time_axis import axis_of

# Widest first: interval of emergence.json, line width, what it is.
INTERVALS = [
    ("bracket", 1.0, "bracket: between two checkpoints"),
    ("jump", 3.0, "jump-weighted"),
    ("doc", 6.0, "documents alone"),
]


def draw(emergence: dict, folder: Path, title: str) -> list[Path]:
    """One line per series in order of onset, heads above in-context learning; draws nothing without onsets."""
    kinds = ("heads", "icl")
    rows = [
        sorted((r for r in emergence["series"] if r["kind"] == k and r["emerged"]), key=lambda r: r["t50_log2"])
        for k in kinds
    ]
    if not any(rows):
        return []
    count = sum(map(len, rows))
    figure, axes = plt.subplots(figsize=(8.5, 0.24 * count + 1.9), layout="constrained")
    place, places, names = 0.0, [], []
    for kind_rows, colour in zip(rows, style.COLOURS, strict=False):
        for row in kind_rows:
            for name, width, _ in INTERVALS:
                ends = [row[f"ci_{name}_{end}_log2"] for end in ("lo", "hi")]
                axes.plot(ends, [place, place], color=colour, linewidth=width, alpha=0.45, solid_capstyle="butt")
            axes.plot(row["t50_log2"], place, "o", color=colour, markersize=4)
            places.append(place)
            late = " *" if {"plateau_unobserved", "transient"} & set(row["flags"]) else ""
            names.append(row["label"] + late)
            place -= 1
        place -= 0.7
    axes.set_yticks(places, names)
    for n, tick in enumerate(axes.get_yticklabels()):
        tick.set_color(style.COLOURS[n >= len(rows[0])])
    axes.set_ylim(place + 0.5, 0.8)
    style.step_axis(axes, np.array(emergence["steps"]), emergence)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        f"{axis_of(emergence).words} at half of the rise (log scale)\n* still rising at the end, or falls again"
    )
    style.expected_induction(axes, np.array(emergence["steps"]), emergence)
    for _, width, said in INTERVALS:
        axes.plot([], [], color=style.GREY, linewidth=width, alpha=0.6, label=said)
    figure.legend(loc="outside lower center", ncols=3)
    absent = len(emergence["series"]) - count
    figure.suptitle(f"{title}: onsets, 95 % intervals ({absent} scores without one)", fontsize=11)
    return style.save(figure, folder, "onsets")
