"""Whether a trajectory rises at all: only emerged series get an onset.

Three gates must all open: a studentised sign-flip max-T test over documents, a rise well above the jitter from
checkpoint to checkpoint (which all documents share, so they cannot show it), and a rise at least as large as the
smallest that counts.

Letters: D documents, C checkpoints, N flips.
"""

import math
from dataclasses import dataclass

import numpy as np

from sih.emergence.onset import Onset, half_rise, jitter_sd

ALPHA = 0.05
JITTER_FACTOR = 5.5  # a rise of at most this many times the jitter does not count; see benchmarks/calibration.py
FLIPS = 999
FEWEST = 3  # checkpoints that a curve needs to rise


@dataclass(frozen=True)
class Assessment:
    """A trajectory's verdict.

    `seen_C`: the checkpoints that have a value; `onset` and `jitter` use only those. `p`: see `sign_flip_p`.
    `rises`: whether all three gates open.
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
) -> Assessment | None:
    """Put the trajectory sum(numerator) / sum(denominator) over x (octaves) through the three gates.

    Args:
        p_always: compute p even where another gate is shut and already decides; otherwise p is 1 there.

    Returns:
        None where fewer than FEWEST checkpoints have a value.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        y_C = sign * numerator_DC.sum(0) / denominator_DC.sum(0)
    seen_C = np.isfinite(y_C)
    if seen_C.sum() < FEWEST:
        return None
    x, y = x_C[seen_C], y_C[seen_C]
    onset, noise = half_rise(x, y, bandwidth), jitter_sd(x, y)
    large = not math.isnan(onset.t50) and onset.rise >= delta and onset.rise > JITTER_FACTOR * noise
    p = 1.0
    if large or p_always:
        p = sign_flip_p(numerator_DC, denominator_DC, seen_C & (x_C <= x[0] + 1), sign, rng, FLIPS)
    return Assessment(seen_C, onset, noise, p, large and p <= ALPHA)


def sign_flip_p(
    numerator_DC: np.ndarray,
    denominator_DC: np.ndarray,
    base_C: np.ndarray,
    sign: int,
    rng: np.random.Generator,
    flips: int,
) -> float:
    """p of the largest studentised rise above the base checkpoints, by flipping whole documents' signs.

    The maximum is over checkpoints (max-T), so there is one p for the whole trajectory. For ratios, the documents'
    first-order contributions to the change are flipped. `base_C` marks the base checkpoints; NaN when there are no
    others.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        base = np.nansum(numerator_DC[:, base_C]) / np.nansum(denominator_DC[:, base_C])
        scale_C = denominator_DC.mean(0)
        change_DC = sign * (numerator_DC - base * denominator_DC) / scale_C
    later_C = ~base_C & np.isfinite(change_DC).all(0)
    if not later_C.any() or not np.isfinite(base):
        return math.nan
    change_DC = change_DC[:, later_C] - np.nan_to_num(change_DC[:, base_C]).mean(1, keepdims=True)
    observed = _studentised(change_DC.mean(0), change_DC).max()
    signs_ND = rng.choice([-1.0, 1.0], size=(flips, len(change_DC)))
    flipped = _studentised(signs_ND @ change_DC / len(change_DC), change_DC).max(1)
    return float((1 + (flipped >= observed).sum()) / (1 + flips))


def _studentised(mean: np.ndarray, change_DC: np.ndarray) -> np.ndarray:
    """Means divided by their standard errors under the flips, which keep the data's second moment."""
    n = len(change_DC)
    variance = (change_DC**2).mean(0) - mean**2
    error = np.sqrt(np.maximum(variance, 0) / max(n - 1, 1))
    return np.divide(mean, error, out=np.where(mean > 0, np.inf, 0.0), where=error > 0)
