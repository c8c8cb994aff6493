"""The headline under other options: what a result owes to the choices that made it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sih.config import EmergenceConfig
from sih.emergence.timing import analyse
from sih.results.trajectories import Trajectories
from sih.results.trajectory import Trajectory

FACTORS = {"top_heads": (0.5, 2.0), "min_events": (0.5, 2.0), "delta": (0.5, 2.0), "bandwidth_oct": (0.7, 1.4)}
_RESAMPLES = 200  # at most, since there are many rows


@dataclass(frozen=True)
class Variant:
    """The headline series when `option` is multiplied by `factor`, and the bandwidth that they are timed with."""

    option: str
    factor: float
    series: list[Trajectory]
    bandwidth: float


def variants_of(data: Trajectories, options: EmergenceConfig) -> list[Variant]:
    """One for each option and factor of FACTORS, all other options as they are.

    A factor of `delta` multiplies every score's smallest rise.
    """
    own, bandwidth = data.headline_and_members, options.bandwidth_oct
    changed = {("top_heads", f): replace(options, top_heads=f * options.top_heads) for f in FACTORS["top_heads"]}
    changed |= {("min_events", f): replace(options, min_events=round(f * options.min_events))
                for f in FACTORS["min_events"]}  # fmt: skip
    of_heads = zip(changed, data.headline_under(list(changed.values())), strict=True)
    found = [Variant(*which, series, bandwidth) for which, series in of_heads]
    for factor in FACTORS["delta"]:
        found.append(Variant("delta", factor, [replace(t, delta=factor * t.delta) for t in own], bandwidth))
    return found + [Variant("bandwidth_oct", f, own, f * bandwidth) for f in FACTORS["bandwidth_oct"]]


def of_run(data: Trajectories, options: EmergenceConfig, rows: Sequence[dict], pairs: Sequence[dict]) -> dict[str, Any]:
    """For emergence.json: `told` in a sentence, and `rows`, one for each variant.

    In these, `onset_steps` are the half-rise of each headline series, None where it has none, and `orders` the decision
    of each headline pair.

    Args:
        rows, pairs: of `analyse` under the options as they are.
    """
    steps, resamples = [int(s) for s in data.steps], min(options.bootstrap, _RESAMPLES)
    # A p of 1 may stand for a curve without a half-rise, which it may have with another bandwidth.
    p = {row["series"]: row["p_emergence"] for row in rows if row.get("p_emergence", 1.0) < 1}
    found = []
    for variant in variants_of(data, options):
        same = [t.name for t in variant.series if variant.option in ("delta", "bandwidth_oct") or t.kind == "icl"]
        known_p = {name: p[name] for name in same if name in p}
        of_series, of_pairs = analyse(steps, variant.series, variant.bandwidth, resamples, data.seed, known_p=known_p)
        shown = [t.name for t in variant.series if t.headline]
        found.append(
            {
                "option": variant.option,
                "factor": variant.factor,
                "onset_steps": {r["series"]: r.get("t50_step") if r["emerged"] else None for r in of_series
                                if r["series"] in shown},
                "orders": {f"{p['heads']} and {p['icl']}": p["decision"] for p in of_pairs
                           if {p["heads"], p["icl"]} <= {*shown}},
            }
        )  # fmt: skip
    return {"told": told(rows, found, pairs), "rows": found}


def told(rows: Sequence[dict], variants: Sequence[dict], pairs: Sequence[dict]) -> str:
    """One sentence: how far the headline's onsets move, which come or go, and how many orders change.

    Args:
        rows, pairs: of `analyse`. variants: the rows of `of_run`.
    """
    onset = {r["series"]: r["t50_log2"] if r["emerged"] else None for r in rows}
    order = {f"{p['heads']} and {p['icl']}": p["decision"] for p in pairs}
    farthest, where, changes = 0.0, "", dict[str, int]()
    for variant in variants:
        for name, step in variant["onset_steps"].items():
            own = onset.get(name)
            if (own is None) != (step is None):
                changes[name] = changes.get(name, 0) + 1
            elif own is not None and step is not None and abs(math.log2(step + 1) - own) > farthest:
                farthest, where = abs(math.log2(step + 1) - own), name
    orders = [(name, decision) for v in variants for name, decision in v["orders"].items() if name in order]
    other = sum(order[name] != decision for name, decision in orders)
    parts = [f"onsets move by at most {farthest:.1f} octaves" + (f" ({where})" if where else "")]
    if changes:
        parts.append("an onset comes or goes: " + ", ".join(f"{name} in {count}" for name, count in changes.items()))
    if orders:
        parts.append(f"{other} of {len(orders)} orders are decided otherwise")
    return f"Under {len(variants)} other choices of {', '.join(FACTORS)}: {'; '.join(parts)}"
