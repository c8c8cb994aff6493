"""What knocking out heads costs: over training, against every head's score, and how far first-order effects agree."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from sih.analysis import style

from sih.emergence.answer import MATCHED
from sih.emergence.effects import linear_LH, places
from sih.emergence.time_axis import axis_of
from sih.results.trajectories import Trajectories

_STEPS = 4  # checkpoints of the picture of all heads


def draw(data: Trajectories, emergence: dict, folder: Path, title: str) -> list[Path]:
    """Effects over training, score against effect for every head, and checks; draws nothing without effects."""
    effects = emergence.get("effects")
    if not effects or not effects["rows"]:
        return []
    return [
        *_over_training(effects, emergence, folder, title),
        *_every_head(data, effects, emergence, folder, title),
        *_checks(effects, emergence, folder, title),
    ]


def _over_training(effects: dict, emergence: dict, folder: Path, title: str) -> list[Path]:
    """A row per group, a column per outcome: cost, its interval, and the range of its control sets."""
    shown = [row for row in effects["rows"] if row["shown"]]
    groups, columns = (list(dict.fromkeys(row[k] for row in shown)) for k in ("group", "outcome"))
    figure, axes = plt.subplots(
        len(groups), len(columns), figsize=(3.1 * len(columns), 1.7 * len(groups) + 0.9), sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel in axes.flat:
        panel.set_visible(False)
    onsets = {row["series"]: row for row in effects["onsets"]}
    scores = {row["series"]: row for row in emergence["series"]}
    for row in shown:
        panel = axes[groups.index(row["group"])][columns.index(row["outcome"])]
        panel.set_visible(True)
        _panel(panel, np.array(effects["steps"]), row, onsets.get(row["series"]), scores.get(row["group"]), emergence)
        if row["group"] == groups[0]:
            panel.set_title(f"cost in {row['outcome_label']}\n{row['label']}: {_few(row['heads'])}", fontsize=8)
        else:
            panel.set_title(f"{row['label']}: {_few(row['heads'])}", fontsize=8)
        if row["group"] == groups[-1]:
            panel.set_xlabel(f"{axis_of(emergence).words} (log scale)")
    entries = {
        label: handle for panel in axes.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4)
    figure.suptitle(
        f"{title}: cost of taking out the heads that lead each score at the last checkpoint ({effects['operation']})",
        fontsize=10,
    )
    return style.save(figure, folder, "effects")


def _few(heads: str) -> str:
    named = heads.split()
    return " ".join(named[:3]) + (f" and {len(named) - 3} more" if named[3:] else "")


def _panel(axes: Axes, steps: np.ndarray, row: dict, onset: dict | None, score: dict | None, emergence: dict) -> None:
    x_C = np.log2(steps + 1)
    cost_C, low_C, high_C, least_C, most_C = (
        row["sign"] * x for x in style.arrays(row, "effect", "low", "high", "controls_low", "controls_high")
    )
    (clean_C,) = style.arrays(row, "clean")
    if np.isfinite(least_C).any():
        counts = [n for n in row["n_controls"] if n]
        axes.fill_between(x_C, np.minimum(least_C, most_C), np.maximum(least_C, most_C), color=style.GREY, alpha=0.35,
                          linewidth=0, label="range of control sets")  # fmt: skip
        controls = f"{max(counts):.0f} control sets {MATCHED[row['matched']]}"
    else:
        controls = "no control sets"
    axes.annotate(controls, (0.02, 0.9), xycoords="axes fraction", fontsize=6.5, color="#444444")
    to_chance_C = row["sign"] * (row["chance"] - clean_C)
    axes.plot(x_C, np.where(to_chance_C > 0, to_chance_C, np.nan), color="#444444", linestyle=":", linewidth=1,
              label="cost of falling to chance")  # fmt: skip
    axes.fill_between(x_C, low_C, high_C, color=style.COLOURS[1], alpha=0.2, linewidth=0)
    axes.plot(x_C, cost_C, color=style.COLOURS[1], marker="o", markersize=2.5, linewidth=1.3, label="this group, 95 %")
    axes.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    if onset is not None and onset["emerged"]:
        left, right = (np.log2(onset[k] + 1) for k in ("cell_lo_step", "cell_hi_step"))
        axes.axvspan(left, right, color=style.COLOURS[4], alpha=0.3, linewidth=0, label="onset of the effect")
    if score is not None and score["emerged"]:
        axes.axvline(
            score["t50_log2"], color=style.COLOURS[0], linestyle="--", linewidth=1, label="half-rise of the score"
        )
    style.step_axis(axes, steps, emergence, narrow=True)


def _every_head(data: Trajectories, effects: dict, emergence: dict, folder: Path, title: str) -> list[Path]:
    """Score against first-order cost, a row per head series and a column per checkpoint."""
    rows = [r for r in effects["rows"] if r["main"]]
    outcome = next((r for r in reversed(rows) if not r["at_chance"]), rows[-1])
    groups = [g for g in dict.fromkeys(r["group"] for r in rows) if g in data.head_sums]
    steps = _spread(effects["steps"])
    found = {step: linear_LH(data, step, outcome["outcome"]) for step in steps}
    steps = [step for step in steps if found[step] is not None]
    if not steps or not groups:
        return []
    figure, axes = plt.subplots(len(groups), len(steps), figsize=(2.7 * len(steps), 2.1 * len(groups) + 0.6),
                                sharex="row", sharey="col", squeeze=False, layout="constrained")  # fmt: skip
    for group, of_group in zip(groups, axes, strict=True):
        sums = data.head_sums[group]
        value_HC = sums.value_HC(False)
        leading = places(next(r["heads"] for r in rows if r["group"] == group))
        for step, panel in zip(steps, of_group, strict=True):
            cost_LH = outcome["sign"] * found[step]
            value_H = value_HC[:, list(data.steps).index(step)]
            cost_H = np.array([cost_LH[head] for head in sums.heads])
            chosen_H = np.array([head in leading for head in sums.heads])
            panel.scatter(value_H[~chosen_H], cost_H[~chosen_H], s=10, color=style.GREY, label="other heads")
            panel.scatter(value_H[chosen_H], cost_H[chosen_H], s=22, color=style.COLOURS[1], label="leading at the end")
            for head, value, cost in zip(sums.heads, value_H, cost_H, strict=True):
                if head in leading and np.isfinite(value):
                    panel.annotate(f"L{head[0]}H{head[1]}", (value, cost), fontsize=6.5, xytext=(3, 2),
                                   textcoords="offset points")  # fmt: skip
            panel.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
            if group == groups[0]:
                panel.set_title(axis_of(emergence).moment(step), fontsize=9)
            if step == steps[0]:
                panel.set_ylabel(f"cost in {outcome['outcome_label']}\nto first order, nats", fontsize=8)
            panel.set_xlabel(sums.spec.label, fontsize=8)
    axes[0][0].legend(loc="best", fontsize=7)
    figure.suptitle(f"{title}: every head's score against its load", fontsize=11)
    return style.save(figure, folder, "loads")


def _spread(steps: Sequence[int]) -> list[int]:
    """A few checkpoints, evenly over all but the first quarter, where little happens, and the last."""
    return [int(steps[i]) for i in sorted({round(i) for i in np.linspace(len(steps) // 4, len(steps) - 1, _STEPS)})]


def _checks(effects: dict, emergence: dict, folder: Path, title: str) -> list[Path]:
    """Correlation of first-order with exact effects by step, its slope, and the heads that groups share."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    steps = np.array(effects["steps"])
    labels = {row["outcome"]: row["outcome_label"] for row in effects["rows"] if row["shown"]}
    known = {r["outcome"] for r in effects["agreement"]}  # accuracies have no gradient
    labels = {outcome: label for outcome, label in labels.items() if outcome in known}
    for (outcome, label), colour in zip(labels.items(), style.COLOURS, strict=False):
        rows = [r for r in effects["agreement"] if r["outcome"] == outcome]
        for axes, what in ((left, "r"), (middle, "slope")):
            values = [np.nan if r[what] is None else r[what] for r in rows]
            axes.plot(
                np.log2([r["step"] + 1 for r in rows]), values, color=colour, marker="o", markersize=2.5, label=label
            )
    left.axhline(0.8, color=style.GREY, linestyle=":", linewidth=1)
    left.set_title("correlation, first-order with exact", fontsize=9)
    middle.axhspan(0.5, 2, color=style.GREY, alpha=0.15, linewidth=0)
    middle.set_ylim(-0.5, 3)
    middle.set_title("slope, exact on first-order", fontsize=9)
    for axes in (left, middle):
        style.step_axis(axes, steps, emergence, narrow=True)
        axes.set_xlabel(f"{axis_of(emergence).words} (log scale)")
    if labels:
        left.legend(loc="lower left", fontsize=7)
    shared = np.array(effects["overlap"]["shared"])
    names = effects["overlap"]["groups"]
    right.imshow(shared, cmap="Blues", vmin=0, vmax=max(1, shared.max() * 1.5))
    right.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7)
    right.set_yticks(range(len(names)), names, fontsize=7)
    for (row, column), count in np.ndenumerate(shared):
        right.text(column, row, str(count), ha="center", va="center", fontsize=8)
    right.set_title("heads that groups share", fontsize=9)
    figure.suptitle(f"{title}: how far first-order effects are to be trusted, and whether groups differ", fontsize=10)
    return style.save(figure, folder, "effects_check")
