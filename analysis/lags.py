"""How long in-context learning comes after the heads, with three intervals and the decision."""

from pathlib import Path

import matplotlib.pyplot as plt
from sih.analysis import style
from sih.analysis.onsets import INTERVALS

DECISIONS = {
    "heads_lead": (style.COLOURS[0], "heads lead"),
    "icl_leads": (style.COLOURS[1], "in-context learning leads"),
    "unresolved": (style.GREY, "unresolved"),
}


def draw(emergence: dict, folder: Path, title: str) -> list[Path]:
    """One line per pair of headline series that both emerged; draws nothing without such a pair."""
    shown = set(emergence["headline"])
    named = {row["series"]: row["label"] for row in emergence["series"]}
    pairs = [p for p in emergence["pairs"] if {p["heads"], p["icl"]} <= shown and p["lag_oct"] is not None]
    if not pairs:
        return []
    figure, axes = plt.subplots(figsize=(8.5, 0.34 * len(pairs) + 1.9), layout="constrained")
    for place, pair in enumerate(pairs):
        colour, _ = DECISIONS[pair["decision"]]
        for name, width, _ in INTERVALS:
            ends = [pair[f"ci_{name}_{end}"] for end in ("lo", "hi")]
            axes.plot(ends, [-place, -place], color=colour, linewidth=width, alpha=0.45, solid_capstyle="butt")
        axes.plot(pair["lag_oct"], -place, "o", color=colour, markersize=4)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([-n for n in range(len(pairs))], [f"{named[p['heads']]}  →  {named[p['icl']]}" for p in pairs])
    axes.set_ylim(-len(pairs) + 0.4, 0.6)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("lag in octaves of training, log2 of the ratio of steps\n(right of 0: heads first)")
    present = {pair["decision"] for pair in pairs}
    for colour, said in (DECISIONS[d] for d in DECISIONS if d in present):
        axes.plot([], [], "o", color=colour, label=said)
    for _, width, said in INTERVALS:
        axes.plot([], [], color=style.GREY, linewidth=width, alpha=0.6, label=said)
    figure.legend(loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}: from heads to in-context learning, 98 % intervals", fontsize=11)
    return style.save(figure, folder, "lags")
