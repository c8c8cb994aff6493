"""What taking heads out costs over training: from which step on more than control sets, and later than their score?

An effect is told by its rank among control sets that match it. Costs are oriented so that a loss of in-context
learning is positive.

Letters: C checkpoints, S sets, L layers, H heads, N random sets.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from sih.config import EmergenceConfig
from sih.emergence.timing import analyse
from sih.results.trajectories import Trajectories
from sih.results.trajectory import Trajectory
from sih.scores import FEWEST_SETS

RANDOM_SETS = 10_000
TRUSTED_R, TRUSTED_SLOPE = 0.8, (0.5, 2.0)
_BY_STEP = ("effect", "low", "high", "controls", "controls_low", "controls_high", "beyond", "beyond_low", "beyond_high",
            "rank_p", "n_controls", "clean", "clean_low", "clean_high", "singles")  # fmt: skip
MORE, NO_MORE, OPEN = "more", "no_more", "not_resolved"
_LEVEL = 0.05  # of p_family


def effects_of(data: Trajectories, options: EmergenceConfig) -> dict | None:
    """Effects of the groups chosen at the last checkpoint; None where none were measured.

    Raises:
        SihError: a table that cannot be read.
    """
    kept = data.effects_kept
    if kept is None:
        return None
    sets, controls = (data.run.table(name, data.steps_with(name)) for name in (kept.sets, kept.controls))
    steps = data.steps_with(kept.sets)  # without those whose table turned out to be damaged
    sets = sets[sets["operation"] == kept.operation]
    last = sets[(sets["chosen"] == "last") & (sets["kind"] == "group")]
    rows: list[dict] = []
    for key, of_group in last.groupby(["group", "outcome"], observed=True, sort=False):
        group, outcome = map(str, key)
        by_step = of_group.set_index("step").reindex(steps)
        sign = 1 if outcome in kept.less_is_more else -1
        row = {
            "group": group, "label": kept.groups.get(group, group), "outcome": outcome,
            "outcome_label": kept.outcomes.get(outcome, outcome), "sign": sign, "main": outcome in kept.main,
            "shown": outcome in kept.shown, "series": f"{kept.series}{group}/{outcome}",
            "heads": str(by_step["heads"].dropna().iloc[-1]), "matched": str(by_step["matched"].dropna().iloc[-1]),
            "n": int(by_step["n"].max()), "chance": float(by_step["chance"].iloc[-1]),
        }  # fmt: skip
        rows.append(row | {name: by_step[name].astype(float).tolist() for name in _BY_STEP})
    _add_family(rows, controls[controls["step"] == steps[-1]])
    rows = [row | decided(row, steps) for row in rows]
    onsets, lags = _timed(
        data, steps, options, {row["series"] for row in rows if row["n_controls_least"] >= FEWEST_SETS}
    )
    return {
        "steps": steps,
        "operation": kept.operation,
        "rows": rows,
        "no_heads": [group for group in kept.groups if group not in {row["group"] for row in rows}],
        "onsets": onsets,
        "lags": lags,
        "agreement": _agreement(data, sets, controls),
        "random": _random(data, rows, steps[-1]),
        "overlap": overlap({row["label"]: row["heads"].split() for row in rows}),
    }


def _add_family(rows: list[dict], controls: pd.DataFrame) -> None:
    """Adds `p_family` at the last step to every row of a main outcome, corrected over these rows; else NaN."""
    random = controls[controls["kind"] == "random"]
    effects = {key: x["effect"].to_numpy(dtype=float) for key, x in random.groupby(["group", "outcome"], observed=True)}
    family = [r for r in rows if r["main"] and (r["group"], r["outcome"]) in effects and np.isfinite(r["effect"][-1])]
    relabelled = [r["sign"] * effects[r["group"], r["outcome"]] for r in family]
    p_G = family_p([r["sign"] * r["effect"][-1] for r in family], relabelled, [r["outcome"] for r in family])
    for row in rows:
        row["p_family"] = float("nan")
    for row, p in zip(family, p_G, strict=True):
        row["p_family"] = float(p)


def family_p(cost_G: Sequence[float], relabelled_GK: Sequence[np.ndarray], outcome_G: Sequence[str]) -> np.ndarray:
    """p of groups to cost as much if costs had nothing to do with scores, corrected over all of them, (G,).

    The single-step max-T of Westfall & Young 1993, over draws in which the heads of each layer change places: what a
    group or its draw costs beyond the mean of both, over the standard deviation of that in its outcome; p is the share
    of draws, with the groups themselves, in which any group costs as much. Exact, however groups overlap. Holm's
    correction of ranks would need as many times more draws as there are groups.

    Args:
        cost_G, relabelled_GK: costs of the groups and of their draws, finite, more is worse, in an outcome's unit.
    """
    if not len(cost_G):
        return np.empty(0)
    t_GK = np.array([[cost, *x] for cost, x in zip(cost_G, relabelled_GK, strict=True)])
    t_GK -= t_GK.mean(axis=1, keepdims=True)
    for outcome in {*outcome_G}:
        of_outcome = np.array(outcome_G) == outcome
        t_GK[of_outcome] /= t_GK[of_outcome].std() or 1.0
    return (t_GK.max(axis=0) >= t_GK[:, :1] - 1e-9).mean(axis=1)


def decided(row: Mapping, steps: Sequence[int]) -> dict:
    """From which step on a group costs more than each of its control sets, if from any.

    A group costs more where it outranks all its controls and the paired interval of its cost beyond their mean excludes
    0: heads that attend sharply write more than their neighbours whatever they write, and the rank alone would call 4
    to 12 % of such groups on random weights. A checkpoint counts where the clean outcome is beyond chance (its 95 %
    interval) and there are enough controls.
    `more`: at the last one, there also by `p_family` for main outcomes, and at all that count from `from_step` on.
    `no_more`: at none. Else `not_resolved`; `few_controls` says that this is only for want of controls.
    """
    sign, chance = row["sign"], row["chance"]
    arrays = {name: np.array(row[name], dtype=float) for name in _BY_STEP}
    better_C = arrays["clean_high"] < chance if sign > 0 else arrays["clean_low"] > chance
    counts_C = better_C & (arrays["n_controls"] >= FEWEST_SETS)
    most_C = arrays["rank_p"] <= 1 / (1 + np.maximum(arrays["n_controls"], 1)) + 1e-9
    costly_C = arrays["beyond_low"] > 0 if sign > 0 else arrays["beyond_high"] < 0
    wins_C = (most_C & costly_C)[counts_C]
    counted = [int(s) for s, yes in zip(steps, counts_C, strict=True) if yes]
    fewest = int(np.nanmin(arrays["n_controls"])) if np.isfinite(arrays["n_controls"]).any() else 0
    found = {"from_step": None, "n_controls_least": fewest, "n_steps": len(counted), "at_chance": not better_C.any(),
             "few_controls": bool(better_C.any() and not counted)}  # fmt: skip
    if not counted:
        reason = (
            "the clean score is at chance" if not better_C.any()
            else f"{fewest} control sets, and no rank among fewer than {FEWEST_SETS} reaches .05"
        )  # fmt: skip
        return found | {"decision": OPEN, "reason": reason}
    if not wins_C.any():
        return found | {"decision": NO_MORE, "reason": ""}
    if not wins_C[-1]:
        return found | {"decision": OPEN, "reason": "at some checkpoints, but not at the last"}
    if row["main"] and not row["p_family"] <= _LEVEL:
        known = np.isfinite(row["p_family"])
        reason = (
            f"p {row['p_family']:.2f} over all groups"
            if known
            else "no draws at the run's last step; measure it with interventions="
        )
        return found | {"decision": OPEN, "reason": reason}
    first = len(wins_C) - int(np.argmin(wins_C[::-1])) if not wins_C.all() else 0
    return found | {"decision": MORE, "reason": "", "from_step": counted[first]}


def _timed(
    data: Trajectories, steps: Sequence[int], options: EmergenceConfig, names: Collection[str]
) -> tuple[list[dict], list[dict]]:
    """Onsets of the effects of these names, whose null is their controls, and the lag from their heads' score to them.

    Scores and effects are read at the checkpoints that have effects, so that their brackets are comparable.
    """
    at = np.isin(data.steps, steps)
    scores = [_at(t, at) for t in data.series if t.name in {e.heads_of for e in data.effects}]
    effects = [
        replace(_at(t, at), kind="icl")
        for t in data.effects
        if t.name in names and t.excess_DC is not None and np.isfinite(t.excess_DC[:, at]).any()
    ]
    if not effects:
        return [], []
    rows, pairs = analyse(steps, [*scores, *effects], options.bandwidth_oct, options.bootstrap, data.seed)
    of = {t.name: t.heads_of for t in effects}
    labels = {t.name: t.label for t in effects}
    onsets = [
        row | {"label": labels[row["series"]], "heads_of": of[row["series"]]} for row in rows if row["series"] in of
    ]
    return onsets, [pair for pair in pairs if of[pair["icl"]] == pair["heads"]]


def _at(trajectory: Trajectory, at_C: np.ndarray) -> Trajectory:
    """The trajectory at some checkpoints."""

    def of(x: np.ndarray | None) -> np.ndarray | None:
        return None if x is None else x[..., at_C]

    return replace(
        trajectory, numerator_DC=trajectory.numerator_DC[:, at_C], denominator_DC=trajectory.denominator_DC[:, at_C],
        excess_DC=of(trajectory.excess_DC), null_C=of(trajectory.null_C), events_C=of(trajectory.events_C),
        members=(),
    )  # fmt: skip


def places(heads: str) -> list[tuple[int, int]]:
    """ "L0H1 L3H5" -> [(0, 1), (3, 5)]."""
    return [(int(layer), int(head)) for layer, head in re.findall(r"L(\d+)H(\d+)", heads)]


def linear_LH(data: Trajectories, step: int, outcome: str) -> np.ndarray | None:
    """The first-order effect of every head on an outcome at a step; None where it was not measured."""
    kept = data.first_order
    if kept is None or step not in data.steps_with(kept.table):
        return None
    table = data.run.table(kept.table, [step])
    table = table[table["outcome"] == outcome]
    if table.empty:
        return None
    found = np.zeros((int(table["layer"].max()) + 1, int(table["head"].max()) + 1))
    found[table["layer"], table["head"]] = table[kept.value]
    return found


def _agreement(data: Trajectories, sets: pd.DataFrame, controls: pd.DataFrame) -> list[dict]:
    """How well first-order effects of all different sets agree with exact ones, by step and outcome."""
    found = []
    both = pd.concat([sets, controls])[["step", "outcome", "heads", "effect"]]
    for key, of_step in both.groupby(["step", "outcome"], observed=True):
        step, outcome = int(str(key[0])), str(key[1])
        linear = linear_LH(data, step, outcome)
        if linear is not None:
            different = of_step.assign(heads=[" ".join(sorted(h.split())) for h in of_step["heads"]])
            different = different.drop_duplicates("heads")
            estimated = np.array([sum(linear[place] for place in places(h)) for h in different["heads"]])
            fit = agreement(estimated, different["effect"].to_numpy(dtype=float))
            found.append({"step": step, "outcome": outcome, **fit})
    return found


def agreement(linear_S: np.ndarray, exact_S: np.ndarray) -> dict:
    """Correlation, and the slope of exact on linear effects through 0; NaN without variance or with fewer than three.

    `trusted`: r of at least .8, and a slope between 1/2 and 2.
    """
    count = len(linear_S)
    flat = count < 3 or linear_S.std() == 0 or exact_S.std() == 0
    r = float("nan") if flat else float(np.corrcoef(linear_S, exact_S)[0, 1])
    total = float(linear_S @ linear_S)
    slope = float(linear_S @ exact_S / total) if total > 0 else float("nan")
    return {"n": count, "r": r, "slope": slope,
            "trusted": bool(r >= TRUSTED_R and TRUSTED_SLOPE[0] <= slope <= TRUSTED_SLOPE[1])}  # fmt: skip


def _random(data: Trajectories, rows: Sequence[Mapping], step: int) -> list[dict]:
    """Each group's first-order effect at the last step among random sets with as many heads in each layer."""
    found = []
    for row in rows:
        linear = linear_LH(data, step, row["outcome"])
        if linear is not None:
            heads = places(row["heads"])
            random_N = random_sets(linear, heads, RANDOM_SETS, data.seed)
            mine = float(sum(linear[h] for h in heads))
            at_least = (row["sign"] * random_N >= row["sign"] * mine - 1e-12).sum()
            found.append({"group": row["group"], "outcome": row["outcome"], "linear": mine,
                          "p": float((1 + at_least) / (1 + RANDOM_SETS)), "sets": RANDOM_SETS})  # fmt: skip
    return found


def random_sets(linear_LH: np.ndarray, heads: Sequence[tuple[int, int]], count: int, seed: int) -> np.ndarray:
    """First-order effects of random sets with as many heads in each layer as `heads`, (N,): sums over the heads."""
    rng = np.random.default_rng([seed, *b"random sets"])
    total_N = np.zeros(count)
    for layer, k in sorted(Counter(layer for layer, _ in heads).items()):
        order_NH = rng.random((count, linear_LH.shape[1])).argsort(1)
        total_N += linear_LH[layer][order_NH[:, :k]].sum(1)
    return total_N


def overlap(groups: Mapping[str, Sequence[str]]) -> dict:
    """How many heads every two groups share."""
    names = list(groups)
    return {"groups": names, "shared": [[len({*groups[a]} & {*groups[b]}) for b in names] for a in names]}
