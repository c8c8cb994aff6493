"""Uncertainty of onsets: resampled documents, widened by how much the checkpoints leave open.

Letters: S series, D documents, C checkpoints, N resamples.
"""

import math
from dataclasses import dataclass

import numpy as np

from sih.emergence.onset import half_rise

LEVEL = 0.95


@dataclass(frozen=True)
class Replicates:
    """Onsets over resampled documents, octaves, (N,) each; NaN where a resample shows no rise.

    `lower`, `upper`: the half-rise point moved towards its cell's ends by the jump share (jump-weighted).
    `left`, `right`: the cell's ends themselves.
    """

    t50: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @property
    def undefined(self) -> float:
        return float(np.mean(np.isnan(self.t50)))


def document_weights(documents: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each resample draws each document, (N, D): numpy's multinomial with equal shares."""
    return rng.multinomial(documents, np.full(documents, 1 / documents), size=resamples).astype(float)


def resampled_onsets(
    x_C: np.ndarray,
    numerator_DC: np.ndarray,
    denominator_DC: np.ndarray,
    weights_ND: np.ndarray,
    sign: int,
    bandwidth: float,
) -> Replicates:
    """Onset of every resample; numerators and denominators of a ratio are resampled separately."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values_NC = sign * (weights_ND @ numerator_DC) / (weights_ND @ denominator_DC)
    found = np.full((5, len(weights_ND)), np.nan)
    for n, y_C in enumerate(values_NC):
        seen = np.isfinite(y_C)
        if seen.sum() < 3:
            continue
        x = x_C[seen]
        onset = half_rise(x, y_C[seen], bandwidth)
        if math.isnan(onset.t50):
            continue
        left, right = x[onset.cell[0]], x[onset.cell[1]]
        j, t = onset.jump_share, onset.t50
        found[:, n] = t, t - j * (t - left), t + j * (right - t), left, right
    return Replicates(*found)


def between(lower_N: np.ndarray, upper_N: np.ndarray) -> tuple[float, float]:
    """The lower tail of the lower ends and the upper tail of the upper ends; NaN when nothing is defined."""
    if np.isnan(lower_N).all():
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    return float(np.nanquantile(lower_N, tail)), float(np.nanquantile(upper_N, 1 - tail))


def sign_flip_p(
    numerator_DC: np.ndarray,
    denominator_DC: np.ndarray,
    base_C: np.ndarray,
    sign: int,
    rng: np.random.Generator,
    flips: int,
) -> float:
    """p of the largest studentised rise above the base checkpoints, by flipping whole documents' signs.

    max-T over checkpoints, so one p for the whole trajectory. For ratios the documents' first-order
    contributions to the change are flipped. `base_C` marks the base checkpoints; NaN with no other one.
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
    """Means over their standard errors under the flips, whose second moment is that of the data."""
    n = len(change_DC)
    variance = (change_DC**2).mean(0) - mean**2
    error = np.sqrt(np.maximum(variance, 0) / max(n - 1, 1))
    return np.divide(mean, error, out=np.where(mean > 0, np.inf, 0.0), where=error > 0)
