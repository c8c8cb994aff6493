"""Uncertainty of onsets: resampled documents, widened by how much the checkpoints leave open.

Letters: S series, D documents, C checkpoints, N resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import special

from sih.emergence.gate import FEWEST
from sih.emergence.onset import by_gaps, half_rises
from sih.results.trajectory import Trajectory
from sih.scores.tables import clustered_share_interval, mean_interval

LEVEL = 0.95
LAG_LEVEL = 0.98  # for lags, which decide: about 1 % false leads (benchmarks/calibration.py)
_DRAWS = 10  # for each resample, how often an onset's place inside its cell is drawn


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
    for mine, seen_C in by_gaps(values_NC, FEWEST):
        x = x_C[seen_C]
        onsets = half_rises(x, values_NC[np.ix_(mine, seen_C)], bandwidth)
        left, right = np.where(np.isnan(onsets.t50), np.nan, x[onsets.cell_N2.T])
        j, t = onsets.jump_share, onsets.t50
        found[:, mine] = t, t - j * (t - left), t + j * (right - t), left, right
    return Replicates(*found)


def median_of(members: Sequence[Replicates | None]) -> Replicates:
    """The median over several series, resample by resample, of the onset and of each of its ends.

    A series without an onset, in a resample or at all (None), counts as later than any checkpoint.
    """
    resamples = next(len(r.t50) for r in members if r is not None)
    never = np.full(resamples, np.inf)
    found = []
    for name in (field.name for field in fields(Replicates)):
        of_members = [never if r is None else np.nan_to_num(getattr(r, name), nan=np.inf) for r in members]
        middle_N = np.median(of_members, axis=0)
        found.append(np.where(np.isfinite(middle_N), middle_N, np.nan))
    return Replicates(*found)


def between(lower_N: np.ndarray, upper_N: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The lower tail of the lower ends and the upper tail of the upper ends; NaN when nothing is defined."""
    if np.isnan(lower_N).all():
        return math.nan, math.nan
    tails = (1 - level) / 2, (1 + level) / 2
    if lower_N is upper_N:
        low, high = np.nanquantile(lower_N, tails)
        return float(low), float(high)
    return float(np.nanquantile(lower_N, tails[0])), float(np.nanquantile(upper_N, tails[1]))


def lag_between(heads: Replicates, icl: Replicates, both_jump: bool, rng: np.random.Generator) -> tuple[float, float]:
    """The jump-weighted interval of T50(ICL) - T50(heads), octaves.

    In each resample both onsets lie anywhere between their jump-weighted ends, independently. With `both_jump`, more
    than half of each rise falls between two checkpoints. Where the onsets lie there is unknown, and their places may
    depend on each other, so the ends themselves are subtracted.
    """
    if both_jump:
        return between(icl.lower - heads.upper, icl.upper - heads.lower, LAG_LEVEL)
    h, i = (r.lower + rng.uniform(size=(_DRAWS, len(r.t50))) * (r.upper - r.lower) for r in (heads, icl))
    lag_N = (i - h).ravel()
    return between(lag_N, lag_N, LAG_LEVEL)


def document_interval(series: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval at each checkpoint over what is independent, the documents, (C,) each; NaN where undefined.

    Of a share of answers, Wilson's at their effective number (see clustered_share_interval). Else Student's t on the
    documents' contributions to the ratio of sums, linearised, so documents that count more weigh more; a series of
    heads, or of a family, holds such contributions already: a mean over heads of each head's own index, or over tasks
    of each task's score.
    """
    count = len(series.documents)
    with np.errstate(invalid="ignore", divide="ignore"):
        if series.share:
            low_C, high_C = clustered_share_interval(
                (series.numerator_DC / series.denominator_DC).T, series.denominator_DC.T
            )
            missing_C = np.isnan(series.value_C)
            return np.where(missing_C, np.nan, low_C), np.where(missing_C, np.nan, high_C)
        beyond_DC = (series.numerator_DC - series.value_C * series.denominator_DC) / series.denominator_DC.mean(0)
        half_C = special.stdtrit(count - 1, (1 + LEVEL) / 2) * np.sqrt((beyond_DC**2).sum(0) / (count * (count - 1)))
    return series.value_C - half_C, series.value_C + half_C


def family_interval(value_MC: np.ndarray, low_MC: np.ndarray, high_MC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean of a family's members, from theirs, (C,) each."""
    return mean_interval(value_MC.T, low_MC.T, high_MC.T)
