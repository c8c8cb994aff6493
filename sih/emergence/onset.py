"""Half-rise onset of one trajectory: a unimodal fit, because transient rises are real.

Letters: C checkpoints.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.optimize import isotonic_regression

_NORMAL_MEDIAN = 0.67449  # median of |z|, z standard normal
_BLOCK = 64  # series that are fitted at once: the more, the more digits they lose
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


@dataclass(frozen=True)
class Onsets:
    """`Onset` of N series on one grid, (N,) each: crossings in octaves, shares of the rise, values in the score's unit.

    `cell_N2`: the checkpoints on both sides of the half-way crossing. Where nothing rises, crossings and `jump_share`
    are NaN, `cell_N2` is meaningless, `base` is the first value and `top` the smooth's peak.
    """

    t10: np.ndarray
    t50: np.ndarray
    t90: np.ndarray
    cell_N2: np.ndarray
    jump_share: np.ndarray
    base: np.ndarray
    top: np.ndarray
    peak: np.ndarray


def half_rise(x_C: np.ndarray, y_C: np.ndarray, bandwidth: float) -> Onset:
    """The onset of y over x (octaves, increasing); values are finite and a rise is positive.

    Peak: argmax of a Gaussian kernel smooth. Fit: isotonic (scipy.optimize.isotonic_regression) up to the peak.
    Base: mean fit within one octave of the first checkpoint. Top: the smooth at the peak, or the fit there
    if that is smaller, so that a crossing exists. Crossings are linear between checkpoints.
    """
    found = half_rises(x_C, y_C[None], bandwidth)
    t10, t50, t90, jump, base, top = (
        float(v[0]) for v in (found.t10, found.t50, found.t90, found.jump_share, found.base, found.top)
    )
    return Onset(
        t10, t50, t90, (int(found.cell_N2[0, 0]), int(found.cell_N2[0, 1])), jump, base, top, int(found.peak[0])
    )


def half_rises(x_C: np.ndarray, y_NC: np.ndarray, bandwidth: float) -> Onsets:
    """The onsets of many series y on one grid; see `half_rise`."""
    smooth_NC, rows_N = y_NC @ kernel_matrix(x_C, bandwidth).T, np.arange(len(y_NC))
    peak = smooth_NC.argmax(1)
    fit_NC = np.full(y_NC.shape, np.inf)  # beyond the peak, where every level has been crossed
    _fit_rising(y_NC, np.arange(len(x_C)) <= peak[:, None], fit_NC)
    early_NC = (x_C <= x_C[0] + 1) & (np.arange(len(x_C)) <= peak[:, None])
    base = np.where(early_NC, fit_NC, 0.0).sum(1) / early_NC.sum(1)
    top = np.minimum(smooth_NC[rows_N, peak], fit_NC[rows_N, peak])
    rises = (peak > 0) & (top - base > _ROUNDING * np.maximum(abs(top), abs(base)))
    base, top = np.where(rises, base, y_NC[:, 0]), np.where(rises, top, smooth_NC[rows_N, peak])
    rise = np.where(rises, top - base, np.nan)
    t10, t50, t90 = (_crossings(x_C, fit_NC, base + share * rise) for share in (0.1, 0.5, 0.9))
    upper = (fit_NC >= (base + 0.5 * rise)[:, None]).argmax(1)
    lower = np.maximum(upper - 1, 0)
    with np.errstate(invalid="ignore"):
        jump = np.clip((fit_NC[rows_N, upper] - fit_NC[rows_N, lower]) / rise, 0, 1)
    cell_N2 = np.stack([lower, upper], axis=1)
    return Onsets(t10, t50, t90, cell_N2, jump, base, top, peak)


def unimodal_residuals(x_C: np.ndarray, y_NC: np.ndarray, bandwidth: float) -> np.ndarray:
    """y minus the best fits that rise up to the smooth's peak and fall after it, (N, C), in y's unit; y is finite.

    Where y is such a curve, what is left is its rounding.
    """
    peak_N, fit_NC = (y_NC @ kernel_matrix(x_C, bandwidth).T).argmax(1), np.empty(y_NC.shape)
    rising_NC = np.arange(len(x_C)) <= peak_N[:, None]
    _fit_rising(y_NC, rising_NC, fit_NC)
    _fit_rising(-y_NC, ~rising_NC, fit_NC)
    return y_NC - np.where(rising_NC, fit_NC, -fit_NC)


def _fit_rising(y_NC: np.ndarray, mine_NC: np.ndarray, fit_NC: np.ndarray) -> None:
    """Isotonic fits of the chosen checkpoints of each series, written into the same places of `fit_NC`.

    scipy.optimize.isotonic_regression of many series at once: each, scaled to [0, 1], lies above the one before, so no
    two are pooled.
    """
    if not y_NC.size:
        return
    low_N, size_N = y_NC.min(1), np.ptp(y_NC, axis=1)
    size_N[size_N == 0] = 1
    scaled_NC = (y_NC - low_N[:, None]) / size_N[:, None]
    for block in (slice(n, n + _BLOCK) for n in range(0, len(y_NC), _BLOCK)):
        mine_BC = mine_NC[block]
        if mine_BC.any():
            low_R, size_R, above_R = (
                np.repeat(of_B, mine_BC.sum(1)) for of_B in (low_N[block], size_N[block], 2.0 * np.arange(len(mine_BC)))
            )
            fitted_R = isotonic_regression(scaled_NC[block][mine_BC] + above_R).x - above_R
            fit_NC[block][mine_BC] = fitted_R * size_R + low_R


def by_gaps(y_NC: np.ndarray, fewest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Series that have values at the same checkpoints, at least `fewest`: their numbers, and the checkpoints' mask."""
    seen_NC, alike = np.isfinite(y_NC), dict[bytes, list[int]]()
    for n, seen_C in enumerate(seen_NC):
        alike.setdefault(seen_C.tobytes(), []).append(n)
    for mine in alike.values():
        if seen_NC[mine[0]].sum() >= fewest:
            yield np.array(mine), seen_NC[mine[0]]


def _crossings(x_C: np.ndarray, fit_NC: np.ndarray, level_N: np.ndarray) -> np.ndarray:
    """Where each rising fit first reaches its level; the first checkpoint when it starts above, NaN for no level."""
    upper, rows_N = (fit_NC >= level_N[:, None]).argmax(1), np.arange(len(fit_NC))
    before = np.maximum(upper - 1, 0)
    low, high = fit_NC[rows_N, before], fit_NC[rows_N, upper]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = x_C[before] + (level_N - low) / (high - low) * (x_C[upper] - x_C[before])
    return np.where(np.isnan(level_N), np.nan, np.where(upper > 0, inside, x_C[0]))


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
    return slope > special.stdtrit(len(x) - 2, 0.99) * error
