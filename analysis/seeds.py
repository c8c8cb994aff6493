"""Onsets of every run: heads against in-context learning, one point per seed."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sih.analysis import style

from sih.emergence.time_axis import STEPS, axis_of

MARKERS = "osD^vP*X"


def draw(across: dict, folder: Path, title: str) -> list[Path]:
    """One panel per pair of series, one colour per model, one cross of intervals per seed; none without points."""
    onsets = {(r["model"], r["model_seed"], r["series"]): r for r in across["series"] if r["emerged"]}
    runs = list(dict.fromkeys((r["model"], r["model_seed"]) for r in across["series"]))
    sizes = {r["model"]: r["tokens_per_step"] for r in across["series"]}
    shared = style.shared_axis(across["axis"], list(sizes.values()))
    unit = "step" if axis_of(shared) == STEPS else "tokens"
    pairs = [p for p in across["pairs"] if p["n_both_emerged"]]
    if not pairs:
        return []
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.4 * columns + 0.6, 3.2 * rows + 0.6), squeeze=False, layout="constrained"
    )
    models = list(dict.fromkeys(model for model, _ in runs))
    for ax, pair in zip(axes.flat, pairs, strict=False):
        ends: list[float] = []
        for model, seed in runs:
            both = [onsets.get((model, seed, pair[kind])) for kind in ("heads", "icl")]
            if None in both:
                continue
            n = models.index(model)
            colour = style.COLOURS[n % len(style.COLOURS)]

            def place(log2: float, size: float | None = sizes[model]) -> float:
                return float(np.log2(style.on_shared([2**log2 - 1], size, shared)[0] + 1))

            spans = [[place(r["ci_jump_lo_log2"]), place(r["ci_jump_hi_log2"])] for r in both]
            at = [place(r["t50_log2"]) for r in both]
            ax.plot(spans[0], [at[1]] * 2, color=colour, linewidth=1, alpha=0.5)
            ax.plot([at[0]] * 2, spans[1], color=colour, linewidth=1, alpha=0.5)
            ax.plot(*at, MARKERS[n % len(MARKERS)], color=colour, markersize=5)
            ends += [*spans[0], *spans[1]]
        low, high = min(ends) - 0.4, max(ends) + 0.4
        ax.plot([low, high], [low, high], color=style.GREY, linewidth=0.8)
        ticks = [
            t for t in np.unique(2 ** np.arange(0, 18, 1 if high - low < 6 else 2)) if low <= np.log2(t + 1) <= high
        ]
        places, names = [float(np.log2(t + 1)) for t in ticks], [str(t) for t in ticks]
        if unit == "tokens":
            places = [float(x) for x in range(int(np.ceil(low)), int(high) + 1, max(1, round((high - low) / 5)))]
            names = [axis_of(shared).number(2**x - 1) for x in places]
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(places, names)
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        ax.set_xlabel(f"{pair['heads']}, {unit}")
        ax.set_ylabel(f"{pair['icl']}, {unit}")
        if pair["p_seed_perm"] is not None:
            ax.set_title(f"r = {pair['r_seed']:.2f}, p = {pair['p_seed_perm']:.3f}, {pair['n_seeds']} runs", fontsize=9)
    for ax in axes.flat[len(pairs) :]:
        ax.set_visible(False)
    for n, model in enumerate(models):
        axes[0][0].plot([], [], MARKERS[n % len(MARKERS)], color=style.COLOURS[n % len(style.COLOURS)], label=model)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(f"{title}: half-rise of heads and in-context learning (above the line: heads lead)", fontsize=11)
    return style.save(figure, folder, "seeds")
