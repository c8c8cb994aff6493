"""Onsets of all series, lags between heads and in-context learning, and what the data can decide."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sih.emergence import MIN_CHECKPOINTS
from sih.emergence.association import FEWEST_CONTROLS, coincidence_p, residual_association
from sih.emergence.gate import Assessment, assess, false_discovery_q
from sih.emergence.intervals import (
    LAG_LEVEL,
    Replicates,
    between,
    document_weights,
    lag_between,
    median_of,
    resampled_onsets,
)
from sih.emergence.onset import octaves, still_rising
from sih.errors import SihError
from sih.results.trajectory import Trajectory

LOW_POWER = 12  # with this many checkpoints or fewer, a flag says that little can be resolved
FAMILY_WISE = 0.05  # chance that any headline series of a run in which none rises is said to rise


def analyse(
    steps_C: Sequence[int],
    trajectories: Sequence[Trajectory],
    bandwidth: float,
    bootstrap: int,
    seed: int,
    controls: Mapping[str, np.ndarray] | None = None,
    known_p: Mapping[str, float] | None = None,
) -> tuple[list[dict], list[dict]]:
    """One row per series and one per (head series, ICL series) pair; fields and units below and in the README.

    A series that belongs to a family is paired with nothing; its family is. A series that has nulls is gated and timed
    as its excess over the largest: `base`, `rise`, `top` and onsets are of that difference. Headline series emerge only
    if they also pass Holm's step-down test at FAMILY_WISE over all headline series of the run (`p_holm`).

    Times end in `_log2` (octaves, log2(step + 1)) or `_step`. A series that did not emerge keeps its rise and
    p but has no onset (None). `lag_oct` = T50(ICL) - T50(heads): positive means heads lead. The decision uses
    the jump-weighted interval, and also requires that the two brackets do not overlap.

    Args:
        controls: by the name of a head series, the onsets of its controls, octaves: means of as many other heads.
        known_p: `p_emergence` of series that were gated before, under whatever delta and bandwidth.

    Raises:
        SihError: steps that do not increase, or arrays that do not fit them.
    """
    steps = np.asarray(steps_C)
    if len(steps) == 0 or (np.diff(steps) <= 0).any():
        raise SihError(f"steps must increase without repeats; got {list(steps)}")
    x_C = octaves(steps)
    for trajectory in trajectories:
        shape = (len(trajectory.documents), len(steps))
        if trajectory.numerator_DC.shape != shape or trajectory.denominator_DC.shape != shape:
            found = trajectory.numerator_DC.shape
            raise SihError(f"{trajectory.name}: arrays of {found} for {shape[0]} documents, {shape[1]} steps")
    weights = _weights(trajectories, bootstrap, seed)
    assessed = {
        t.name: _assessed(x_C, t, bandwidth, seed, (known_p or {}).get(t.name)) for t in trajectories if not t.members
    }
    p_holm = _holm({t.name: _headline_p(t, assessed) for t in trajectories if t.headline})
    by_name: dict[str, dict] = {}
    replicates: dict[str, Replicates] = {}
    for trajectory in sorted(trajectories, key=lambda t: bool(t.members)):  # families after their members
        adjusted = p_holm.get(trajectory.name)
        if trajectory.members:
            row, resampled = _family(trajectory, [by_name[name] for name in trajectory.members], replicates, adjusted)
        else:
            weights_ND = np.stack([weights[trajectory.pool][d] for d in trajectory.documents], axis=1)
            verdict = assessed[trajectory.name]
            row, resampled = _one(steps, x_C, trajectory, verdict, adjusted, weights_ND, bandwidth)
        by_name[trajectory.name] = row
        if resampled is not None:
            replicates[trajectory.name] = resampled
    rows = [by_name[trajectory.name] for trajectory in trajectories]
    _add_q(rows)
    pairs = []
    inner = {name for t in trajectories for name in t.members}
    for heads in (t for t in trajectories if t.kind == "heads"):
        for icl in (t for t in trajectories if t.kind == "icl" and t.name not in inner):
            row = _pair(by_name[heads.name], by_name[icl.name], replicates, seed)
            onsets = (controls or {}).get(heads.name, np.empty(0))
            pairs.append(row | _associated(x_C, heads, icl, by_name, onsets, bandwidth, seed))
    return rows, pairs


def _weights(trajectories: Sequence[Trajectory], bootstrap: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """How often each resample draws each document, (N,), by pool and document; a pool is drawn from as a whole."""
    found = {}
    for pool in sorted({t.pool for t in trajectories}):
        names = sorted({d for t in trajectories if t.pool == pool for d in t.documents})
        weights_ND = document_weights(len(names), bootstrap, np.random.default_rng([seed, *pool.encode()]))
        found[pool] = dict(zip(names, weights_ND.T, strict=True))
    return found


def _assessed(
    x_C: np.ndarray, trajectory: Trajectory, bandwidth: float, seed: int, known_p: float | None
) -> Assessment | None:
    rng = np.random.default_rng([seed, *f"rise of {trajectory.name}".encode()])
    return assess(x_C, *trajectory.timed, trajectory.sign, trajectory.delta, bandwidth, rng, known_p=known_p)


def _headline_p(trajectory: Trajectory, assessed: Mapping[str, Assessment | None]) -> float:
    """p of a rise; a family's: that most of its members rise (Rueger's bound for dependent p, 1978)."""
    found = [assessed[name] for name in trajectory.members or (trajectory.name,)]
    p_M = sorted(1.0 if a is None else a.p for a in found)
    most = len(p_M) // 2 + 1
    return min(1.0, p_M[most - 1] * len(p_M) / most)


def _holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) adjusted p: the chance that any of them is at most its own, whichever of them are null."""
    found, largest = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        found[name] = largest
    return found


def _one(
    steps: np.ndarray,
    x_C: np.ndarray,
    trajectory: Trajectory,
    found: Assessment | None,
    p_holm: float | None,
    weights_ND: np.ndarray,
    bandwidth: float,
) -> tuple[dict, Replicates | None]:
    numerator_DC, denominator_DC = trajectory.timed
    timed_C = trajectory.sign * trajectory.timed_C
    seen = np.isfinite(timed_C)
    row: dict = {
        "series": trajectory.name,
        "kind": trajectory.kind,
        "n_docs": len(numerator_DC),
        "n_checkpoints": int(seen.sum()),
        "n_heads": len(trajectory.heads),
        "n_events_min": int(_events(trajectory)[seen].min()) if seen.any() else 0,
    }
    flags = []
    if seen.sum() < MIN_CHECKPOINTS:
        flags.append("too_few_checkpoints")
    elif seen.sum() <= LOW_POWER:
        flags.append("low_power")
    if seen.mean() < 0.8:
        flags.append("low_support")
    if steps[0] > 1:
        flags.append("baseline_unobserved")
    if found is None:
        return {**row, "emerged": False, "flags": [*flags, "no_emergence"]}, None
    onset, last = found.onset, float(timed_C[seen][-1])
    rises = found.rises and (p_holm is None or p_holm <= FAMILY_WISE)
    above = _above_floor(trajectory, np.flatnonzero(seen)[onset.peak], weights_ND)
    if rises and not above:
        flags.append("not_above_floor")
    row |= {
        "emerged": rises and above,
        "rise": onset.rise,
        "base": trajectory.sign * onset.base,
        "top": trajectory.sign * onset.top,
        "jitter_sd": found.jitter,
        "rise_over_jitter": onset.rise / found.jitter if found.jitter > 0 else math.inf,
        "p_emergence": found.p,
        "p_holm": math.nan if p_holm is None else p_holm,
        "peak_step": int(steps[seen][onset.peak]),
        "drop_after_peak": onset.top - last,
    }
    if not row["emerged"]:
        if onset.rise >= trajectory.delta and not rises:
            flags.append("not_resolved")
        return {**row, "flags": [*flags, "no_emergence"]}, None
    resampled = resampled_onsets(x_C, numerator_DC, denominator_DC, weights_ND, trajectory.sign, bandwidth)
    left, right = (int(steps[seen][i]) for i in onset.cell)
    if onset.cell[0] == 0:
        flags.append("onset_at_first_cell")
    if still_rising(x_C[seen], timed_C[seen]):
        flags.append("plateau_unobserved")
    if row["drop_after_peak"] > 0.5 * onset.rise:
        flags.append("transient")
    if onset.jump_share > 0.5:
        flags.append("unresolved_step")
    if resampled.undefined > 0.2:
        flags.append("undefined_boot")
    row |= {
        "t50_log2": onset.t50,
        "t50_step": 2**onset.t50 - 1,
        "t10_log2": onset.t10,
        "t90_log2": onset.t90,
        "width_oct": onset.t90 - onset.t10,
        "cell_lo_step": left,
        "cell_hi_step": right,
        "jump_share": onset.jump_share,
        "boot_undefined_frac": resampled.undefined,
    }
    for name, ends in _ends(resampled, onset.jump_share > 0.5).items():
        row[f"ci_{name}_lo_log2"], row[f"ci_{name}_hi_log2"] = between(*ends)
    return {**row, "flags": flags}, resampled


def _events(trajectory: Trajectory) -> np.ndarray:
    """What the series counts at each checkpoint: events of its heads, answers, or documents, (C,)."""
    return trajectory.denominator_DC.sum(0) if trajectory.events_C is None else trajectory.events_C


def _family(
    trajectory: Trajectory, members: Sequence[dict], replicates: Mapping[str, Replicates], p_holm: float | None
) -> tuple[dict, Replicates | None]:
    """A family's row. It has emerged when most of its members have; its onset is the median of theirs.

    A member that has not emerged counts as later than any checkpoint, in every resample too: leaving it out would move
    the median towards the early ones. `first_t50_step` and `last_t50_step` are the range of those that have.
    """
    emerged = [row for row in members if row["emerged"]]
    resolved = p_holm is None or p_holm <= FAMILY_WISE
    most = 2 * len(emerged) > len(members) and resolved
    told = emerged if most else members
    row: dict = {
        "series": trajectory.name,
        "kind": trajectory.kind,
        "n_docs": len(trajectory.documents),
        "n_checkpoints": min(row["n_checkpoints"] for row in members),
        "n_heads": 0,
        "n_events_min": min(row["n_events_min"] for row in members),
        "n_members": len(members),
        "n_emerged": len(emerged),
        "emerged": most,
        "p_holm": math.nan if p_holm is None else p_holm,
    }
    if all("rise" in r for r in told):
        row |= {key: float(np.median([r[key] for r in told])) for key in ("rise", "base", "top", "jitter_sd")}
    flags = [f for f in dict.fromkeys(f for r in told for f in r["flags"])
             if 2 * sum(f in r["flags"] for r in told) > len(told)]  # fmt: skip
    if not most:
        if emerged and resolved:
            flags.append("some_members")
        elif emerged:
            flags.append("not_resolved")
        return {**row, "flags": list(dict.fromkeys([*flags, "no_emergence"]))}, None

    def middle(values: Sequence[float]) -> float:
        """The median over all members; those that have not emerged come last."""
        return float(np.median([*values, *[math.inf] * (len(members) - len(emerged))]))

    row |= {key: middle([r[key] for r in emerged]) for key in ("t50_log2", "t10_log2", "t90_log2")}
    row |= {key: float(np.median([r[key] for r in emerged])) for key in ("jump_share", "boot_undefined_frac",
                                                                        "drop_after_peak")}  # fmt: skip
    row["t50_step"], row["width_oct"] = 2 ** row["t50_log2"] - 1, row["t90_log2"] - row["t10_log2"]
    # Medians in octaves, as the onset is, so that the bracket contains it.
    left, right = (middle([math.log2(r[f"cell_{end}_step"] + 1) for r in emerged]) for end in ("lo", "hi"))
    row["cell_lo_step"], row["cell_hi_step"] = math.floor(2**left - 1 + 1e-6), math.ceil(2**right - 1 - 1e-6)
    row["peak_step"] = int(np.median([r["peak_step"] for r in emerged]))
    row["first_t50_step"], row["last_t50_step"] = (f(r["t50_step"] for r in emerged) for f in (min, max))
    resampled = median_of([replicates.get(r["series"]) for r in members])
    for name, ends in _ends(resampled, "unresolved_step" in flags).items():
        row[f"ci_{name}_lo_log2"], row[f"ci_{name}_hi_log2"] = between(*ends)
    return {**row, "flags": flags}, resampled


def _add_q(rows: list[dict]) -> None:
    """`q_bh` of every series that has a p: Benjamini and Hochberg's over all of them."""
    tested = [row for row in rows if math.isfinite(row.get("p_emergence", math.nan))]
    if tested:
        p = np.array([row["p_emergence"] for row in tested])
        for row, q in zip(tested, false_discovery_q(p), strict=True):
            row["q_bh"] = float(q)


def _above_floor(trajectory: Trajectory, peak: int, weights_ND: np.ndarray) -> bool:
    """Whether 97.5 % of the resamples are above chance, or the null on the same events, at the peak checkpoint."""
    if trajectory.excess_DC is None:
        return True
    excess_D = trajectory.sign * trajectory.excess_DC[:, peak]
    return bool(np.isfinite(excess_D).all() and np.quantile(weights_ND @ excess_D, 0.025) > 0)


def _ends(r: Replicates, jumps: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The lower and upper ends of each interval, by name; `jumps`: most of the rise falls between two checkpoints.

    Such an onset may lie anywhere between them, so its interval is the whole cell. Noise at either end lowers the jump
    share, and widening by that share alone covers a true step in only .87 of runs.
    """
    cell = r.left, r.right
    return {"doc": (r.t50, r.t50), "jump": cell if jumps else (r.lower, r.upper), "bracket": cell}


def _pair(heads: dict, icl: dict, replicates: dict[str, Replicates], seed: int) -> dict:
    row: dict = {"heads": heads["series"], "icl": icl["series"], "lag_oct": None, "decision": "unresolved"}
    if not (heads["emerged"] and icl["emerged"]):
        row["reason"] = "not both series emerged"
        return row
    h, i = replicates[heads["series"]], replicates[icl["series"]]
    row["lag_oct"] = icl["t50_log2"] - heads["t50_log2"]
    rng = np.random.default_rng([seed, *f"{heads['series']} to {icl['series']}".encode()])
    both_jump = all("unresolved_step" in r["flags"] for r in (heads, icl))
    lag_N = i.t50 - h.t50
    for name, ends in (
        ("doc", between(lag_N, lag_N, LAG_LEVEL)),
        ("jump", lag_between(h, i, both_jump, rng)),
        ("bracket", between(i.left - h.right, i.right - h.left, LAG_LEVEL)),
    ):
        row[f"ci_{name}_lo"], row[f"ci_{name}_hi"] = ends
    cells = [np.log2([r["cell_lo_step"] + 1, r["cell_hi_step"] + 1]) for r in (heads, icl)]
    row["min_resolvable_oct"] = float(np.median([c[1] - c[0] for c in cells]))
    if {"too_few_checkpoints"} & {*heads["flags"], *icl["flags"]}:
        row["reason"] = "too few checkpoints"
    elif heads["cell_lo_step"] < icl["cell_hi_step"] and icl["cell_lo_step"] < heads["cell_hi_step"]:
        row["reason"] = "the brackets overlap"
    elif row["ci_jump_lo"] > 0:
        row["decision"] = "heads_lead"
    elif row["ci_jump_hi"] < 0:
        row["decision"] = "icl_leads"
    else:
        row["reason"] = "the lag's interval includes 0"

    return row


def _associated(
    x_C: np.ndarray,
    heads: Trajectory,
    icl: Trajectory,
    rows: Mapping[str, dict],
    controls: np.ndarray,
    bandwidth: float,
    seed: int,
) -> dict:
    """Association within the run, which cannot exclude a common cause; p over seeds needs several runs."""
    onsets = [rows[t.name].get("t50_log2", math.nan) for t in (heads, icl)]
    h_C, i_C = heads.sign * heads.timed_C, icl.sign * icl.timed_C
    r, p = math.nan, math.nan
    if rows[heads.name]["emerged"] and rows[icl.name]["emerged"]:
        r, p = residual_association(x_C, h_C, i_C, bandwidth, seed)
    count = int(np.isfinite(controls).sum())
    return {
        "p_coincidence": coincidence_p(onsets[0], onsets[1], list(controls)),
        "n_controls": count,
        "few_controls": count < FEWEST_CONTROLS,
        "r_residual": r,
        "p_residual": p,
        "p_seed_perm": math.nan,
        "n_seeds": 1,
    }
