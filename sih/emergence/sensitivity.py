"""The headline under other options: what a result owes to the choices that made it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sih.config import EmergenceConfig
from sih.emergence.timing import analyse
from sih.results.trajectories import Trajectories
from sih.results.trajectory import Trajectory

FACTORS = {"top_heads": (0.5, 2.0), "min_events": (0.5, 2.0), "delta": (0.5, 2.0), "bandwidth_oct": (0.7, 1.4)}
_RESAMPLES = 200  # at most, since there are many rows


def sensitivity(data: Trajectories, options: EmergenceConfig, rows: Sequence[dict]) -> list[dict]:
    """One row for each option and factor of FACTORS, all other options as they are.

    `factor` multiplies the `option`; a factor of `delta` multiplies every score's smallest rise. `onset_steps`: the
    half-rise of each headline series, None where it has none. `orders`: the decision of each headline pair.

    Args:
        rows: of `analyse` under the options as they are.
    """
    steps, resamples = [int(s) for s in data.steps], min(options.bootstrap, _RESAMPLES)
    # A p of 1 may stand for a curve without a half-rise, which it may have with another bandwidth.
    p = {row["series"]: row["p_emergence"] for row in rows if row.get("p_emergence", 1.0) < 1}
    found = []
    for option, factor, series, changed in _varied(data, options):
        same = [t.name for t in series if option in ("delta", "bandwidth_oct") or t.kind == "icl"]
        known_p = {name: p[name] for name in same if name in p}
        rows, pairs = analyse(steps, series, changed.bandwidth_oct, resamples, data.seed, known_p=known_p)
        shown = [t.name for t in series if t.headline]
        found.append(
            {
                "option": option,
                "factor": factor,
                "onset_steps": {r["series"]: r.get("t50_step") if r["emerged"] else None for r in rows
                                if r["series"] in shown},
                "orders": {f"{p['heads']} and {p['icl']}": p["decision"] for p in pairs
                           if {p["heads"], p["icl"]} <= {*shown}},
            }
        )  # fmt: skip
    return found


def _varied(
    data: Trajectories, options: EmergenceConfig
) -> Iterator[tuple[str, float, list[Trajectory], EmergenceConfig]]:
    """Each option and factor, with the headline series that they give and the options that these are timed with."""
    own = data.headline_and_members()
    for option, factors in FACTORS.items():
        for factor in factors:
            if option == "delta":
                yield option, factor, [replace(t, delta=factor * t.delta) for t in own], options
                continue
            value = factor * getattr(options, option)
            changed = replace(options, **{option: round(value) if option == "min_events" else value})
            series = own if option == "bandwidth_oct" else data.with_options(changed).headline_and_members()
            yield option, factor, series, changed


def told(rows: Sequence[dict], variants: Sequence[dict], pairs: Sequence[dict]) -> str:
    """One sentence: how far the headline's onsets move, which come or go, and how many orders change.

    Args:
        rows, pairs: of `analyse`. variants: of `sensitivity`.
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


def of_run(data: Trajectories, options: EmergenceConfig, rows: Sequence[dict], pairs: Sequence[dict]) -> dict[str, Any]:
    """`rows`, and `told`, for emergence.json."""
    variants = sensitivity(data, options, rows)
    return {"told": told(rows, variants, pairs), "rows": variants}
