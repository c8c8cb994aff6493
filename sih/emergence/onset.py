"""Half-rise onset of one trajectory: a unimodal fit, because transient rises are real.

Letters: C checkpoints.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

_NORMAL_MEDIAN = 0.67449  # median of |z|, z standard normal
_ROUNDING = 1e-12  # a rise of at most this share of the values counts as none


@dataclass(frozen=True)
class Onset:
    """Crossings of 10, 50 and 90 % of the rise from base to top, in octaves; NaN when nothing rises.

    `cell` are the checkpoints (indices) on both sides of the half-way crossing; `jump_share` the part of the
    rise that happens between them, 1 when the checkpoints see a single jump.
    """

    t10: float
    t50: float
    t90: float
    cell: tuple[int, int]
    jump_share: float
    base: float
    top: float
    peak: int

    @property
    def rise(self) -> float:
        return self.top - self.base


def octaves(steps: np.ndarray) -> np.ndarray:
    """log2(step + 1)."""
    return np.log2(np.asarray(steps, dtype=float) + 1)


def half_rise(x_C: np.ndarray, y_C: np.ndarray, bandwidth: float) -> Onset:
    """The onset of y over x (octaves, increasing); values are finite and a rise is positive.

    Peak: argmax of a Gaussian kernel smooth. Fit: isotonic (scipy.optimize.isotonic_regression) up to the peak.
    Base: mean fit within one octave of the first checkpoint. Top: the smooth at the peak, or the fit there
    if that is smaller, so that a crossing exists. Crossings are linear between checkpoints.
    """
    return from_smooth(x_C, y_C, kernel_matrix(x_C, bandwidth) @ y_C)


def from_smooth(x_C: np.ndarray, y_C: np.ndarray, smooth_C: np.ndarray) -> Onset:
    """The same with the kernel smooth given, for many series on one grid."""
    peak = int(np.argmax(smooth_C))
    nothing = Onset(math.nan, math.nan, math.nan, (0, 0), math.nan, float(y_C[0]), float(smooth_C[peak]), peak)
    if peak == 0:
        return nothing
    fit = isotonic_regression(y_C[: peak + 1]).x
    base = float(fit[x_C[: peak + 1] <= x_C[0] + 1].mean())
    top = float(min(smooth_C[peak], fit[-1]))
    if top - base <= _ROUNDING * max(abs(top), abs(base)):
        return nothing
    t10, t50, t90 = (_crossing(x_C, fit, base + share * (top - base)) for share in (0.1, 0.5, 0.9))
    upper = int(np.argmax(fit >= base + 0.5 * (top - base)))
    lower = max(upper - 1, 0)
    jump = float(np.clip((fit[upper] - fit[lower]) / (top - base), 0, 1))
    return Onset(t10, t50, t90, (lower, upper), jump, base, top, peak)


def _crossing(x_C: np.ndarray, fit: np.ndarray, level: float) -> float:
    """Where the rising fit first reaches `level`; the first checkpoint when it starts above."""
    upper = int(np.argmax(fit >= level))
    if upper == 0:
        return float(x_C[0])
    low, high = fit[upper - 1], fit[upper]
    return float(x_C[upper - 1] + (level - low) / (high - low) * (x_C[upper] - x_C[upper - 1]))


def kernel_matrix(x_C: np.ndarray, bandwidth: float) -> np.ndarray:
    """Rows of normalised Gaussian weights, read-only: smooth = kernel_matrix @ values."""
    return _kernel(tuple(x_C.tolist()), bandwidth)


@functools.lru_cache(maxsize=64)
def _kernel(grid: tuple[float, ...], bandwidth: float) -> np.ndarray:
    x_C = np.array(grid)
    weights_CC = np.exp(-0.5 * ((x_C[:, None] - x_C[None, :]) / bandwidth) ** 2)
    weights_CC /= weights_CC.sum(1, keepdims=True)
    weights_CC.flags.writeable = False
    return weights_CC


def jitter_sd(x_C: np.ndarray, y_C: np.ndarray) -> float:
    """Checkpoint-to-checkpoint noise, from the pseudo-residuals of Gasser, Sroka and Jennen-Steinmetz (1986).

    Each inner value is compared with the straight line through its neighbours, scaled to the noise's standard
    deviation. The estimate uses their median size rather than their mean square, because a steep rise leaves a few
    large residuals that are not noise. NaN with fewer than three checkpoints.
    """
    if len(x_C) < 3:
        return math.nan
    left = (x_C[2:] - x_C[1:-1]) / (x_C[2:] - x_C[:-2])
    residual = left * y_C[:-2] + (1 - left) * y_C[2:] - y_C[1:-1]
    return float(np.median(np.abs(residual) / np.sqrt(left**2 + (1 - left) ** 2 + 1)) / _NORMAL_MEDIAN)


_LATE = 1.0  # octaves before the last checkpoint in which a curve may still rise
_FEWEST_LATE = 5


def still_rising(x_C: np.ndarray, y_C: np.ndarray) -> bool:
    """Whether y rises over the last octave (at least five checkpoints) by more than its noise.

    The line's slope against Student's t at 99 %, one-sided; residuals of neighbouring checkpoints may hang together, so
    the slope's error is that of an AR(1) series with their own correlation, at least 0. How many plateaus are called
    rising stands in benchmarks/README.md. With fewer than five checkpoints: whether the last is the highest.
    """
    late = np.flatnonzero(x_C >= x_C[-1] - _LATE)
    late = late if len(late) >= _FEWEST_LATE else np.arange(max(0, len(x_C) - _FEWEST_LATE), len(x_C))
    if len(late) < _FEWEST_LATE:
        return bool(y_C[-1] == y_C.max())  # too few to tell: the onset may be a lower bound
    x, y = x_C[late] - x_C[late].mean(), y_C[late] - y_C[late].mean()
    slope = float(x @ y / (x @ x))
    residual = y - slope * x
    together = float(np.clip(residual[1:] @ residual[:-1] / max(residual @ residual, 1e-300), 0, 0.9))
    inflated = math.sqrt((1 + together) / (1 - together))
    error = inflated * math.sqrt(residual @ residual / (len(x) - 2) / (x @ x))
    return slope > stats.t.ppf(0.99, len(x) - 2) * error
