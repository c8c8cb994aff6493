"""Whether a trajectory rises at all: only emerged series get an onset.

A rise must be larger than series that do not rise show on the same checkpoints with the same noise (`null.py`), and at
least the smallest that counts.

Letters: D documents, C checkpoints.
"""

import math
from dataclasses import dataclass

import numpy as np

from sih.emergence.null import rise_p
from sih.emergence.onset import Onset, half_rise, jitter_sd

ALPHA = 0.01  # for a single series; see benchmarks/calibration.py
FEWEST = 3  # checkpoints that a curve needs to rise


@dataclass(frozen=True)
class Assessment:
    """A trajectory's verdict.

    `seen_C`: the checkpoints that have a value; `onset` and `jitter` use only those. `jitter`: noise from checkpoint
    to checkpoint, of documents and of all together. `p` of the rise: see `rise_p`; 1 where nothing rises. `rises`:
    whether p <= ALPHA and the rise counts.
    """

    seen_C: np.ndarray
    onset: Onset
    jitter: float
    p: float
    rises: bool


def assess(
    x_C: np.ndarray,
    numerator_DC: np.ndarray,
    denominator_DC: np.ndarray,
    sign: int,
    delta: float,
    bandwidth: float,
    rng: np.random.Generator,
    p_always: bool = True,
    known_p: float | None = None,
) -> Assessment | None:
    """Put the trajectory sum(numerator) / sum(denominator) over x (octaves) through the gate.

    Args:
        p_always: compute p even where the rise is too small to count; otherwise p is 1 there.
        known_p: the p of this very trajectory, where it is known; it depends on neither delta nor bandwidth.

    Returns:
        None where fewer than FEWEST checkpoints have a value.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        y_C = sign * numerator_DC.sum(0) / denominator_DC.sum(0)
    seen_C = np.isfinite(y_C)
    if seen_C.sum() < FEWEST:
        return None
    x, y = x_C[seen_C], y_C[seen_C]
    onset = half_rise(x, y, bandwidth)
    large, p = onset.rise >= delta, 1.0
    if not math.isnan(onset.t50) and (large or p_always):
        numerator, denominator = numerator_DC[:, seen_C], denominator_DC[:, seen_C]
        beyond_DC = (sign * numerator - y * denominator) / denominator.sum(0)
        p = rise_p(x_C, y_C, beyond_DC, rng) if known_p is None else known_p
    return Assessment(seen_C, onset, jitter_sd(x, y), p, large and p <= ALPHA)


def false_discovery_q(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's (1995) adjusted p, (N,) in [0, 1]: the least false discovery rate at which each is told.

    `p` is (N,), in any order, without NaN; N may be 0.
    As scipy.stats.false_discovery_control, whose package takes as long to import as all heads of a score to test.
    """
    order = np.argsort(p)
    adjusted = p[order] * len(order) / np.arange(1, len(order) + 1)
    found = np.empty(len(order))
    found[order] = np.minimum(np.minimum.accumulate(adjusted[::-1])[::-1], 1)
    return found
