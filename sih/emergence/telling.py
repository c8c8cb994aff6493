"""Which checkpoints pictures of single checkpoints show: spread evenly over log time, and around the onsets."""

from typing import Any

import numpy as np

from sih.emergence.onset import octaves


def telling(emergence: dict[str, Any], count: int) -> list[int]:
    """At most `count` of the steps: the first, the last, and those that tell most of the rest.

    Half are the checkpoints nearest to places that are even over log2(step + 1). The others are those at both ends of
    the headline onsets' brackets, the earliest first; what they leave is spread over log time again.
    """
    steps = emergence["steps"]
    if len(steps) <= count:
        return list(steps)
    shown = [r for r in emergence["series"] if r["series"] in emergence["headline"] and r["emerged"]]
    ends = [int(r[k]) for r in sorted(shown, key=lambda r: r["t50_log2"]) for k in ("cell_lo_step", "cell_hi_step")
            if r.get(k) is not None]  # fmt: skip
    kept = set(_even(steps, (count + 1) // 2))
    for step in dict.fromkeys(ends):
        if len(kept) < count and step in steps:
            kept.add(step)
    for more in range(count, len(steps) + 1):
        for step in _even(steps, more):
            if len(kept) < count:
                kept.add(step)
        if len(kept) == count:
            break
    return sorted(kept)


def _even(steps: list[int], count: int) -> list[int]:
    """The steps nearest to `count` places that are even over log time, in an order that bisects."""
    x_C = octaves(np.array(steps))
    near = [steps[int(np.abs(x_C - x).argmin())] for x in np.linspace(x_C[0], x_C[-1], count)]
    return list(dict.fromkeys([near[0], near[-1], *near[1:-1]]))
