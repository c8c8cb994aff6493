"""Onsets of several runs: the mean over seeds and how much seeds differ, and the slope over sizes.

Letters: R runs of one model, M models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from sih.emergence.association import FEWEST_RUNS

FEWEST_SIZES = 4  # with three, the interval of a slope has one degree of freedom
_ENDS = 2 * stats.norm.ppf(0.975)  # a 95 % interval is so many standard errors wide


@dataclass(frozen=True)
class OverSeeds:
    """Onsets, or lags, of runs that differ in their seed, octaves.

    `mean` and its 95 % interval `low`, `high`: of a random-effects model, with the runs' own intervals as their
    uncertainty; NaN with fewer than FEWEST_RUNS runs. `between_sd`: how much seeds differ beyond these. `sd`: as
    observed. `within_sd`: what the runs' intervals let one expect. `count`: how many runs have a value.
    """

    count: int
    sd: float
    within_sd: float
    between_sd: float
    mean: float
    low: float
    high: float


def over_seeds(value_R: np.ndarray, low_R: np.ndarray, high_R: np.ndarray) -> OverSeeds:
    """Combine the values of several seeds, each with a 95 % interval; runs without a value (NaN) are left out.

    Random effects by Paule and Mandel (1982), the mean's interval by Hartung and Knapp (2001):
    statsmodels' combine_effects. A run's standard error is at least .01 octaves, since an interval may have no width.
    Runs have the same documents and checkpoints, so their errors hang together and no number of runs averages them out:
    the runs' mean standard error is added to the mean's (in quadrature). Without it the mean of six was covered in .89.

    Args:
        value_R, low_R, high_R: octaves, (R,) each.
    """
    seen = np.isfinite(value_R)
    value, width = value_R[seen], (high_R - low_R)[seen]
    count = len(value)
    if count == 0:
        return OverSeeds(0, *[math.nan] * 6)
    error = np.maximum(width / _ENDS, 0.01)
    sd, within = float(value.std(ddof=1)) if count > 1 else math.nan, float(np.sqrt((error**2).mean()))
    if count < FEWEST_RUNS:
        return OverSeeds(count, sd, within, math.nan, math.nan, math.nan, math.nan)
    found = combine_effects(value, error**2, method_re="iterated", use_t=True)
    mean, spread = float(found.mean_effect_re), float(found.sd_eff_w_re_hksj)
    half = math.hypot(stats.t.ppf(0.975, count - 1) * spread, _ENDS / 2 * float(error.mean()))
    return OverSeeds(count, sd, within, math.sqrt(max(0.0, float(found.tau2))), mean, mean - half, mean + half)


@dataclass(frozen=True)
class OverSizes:
    """By how many octaves of tokens the onset moves when a model has twice the parameters, with its 95 % interval."""

    count: int
    slope: float
    low: float
    high: float


def over_sizes(log2_parameters_M: np.ndarray, log2_tokens_M: np.ndarray) -> OverSizes:
    """The straight line through the models' onsets, each the mean of its runs, with equal weights (scipy's linregress).

    Models differ by more than their runs' uncertainty, so the interval is from their scatter about the line. NaN with
    fewer than FEWEST_SIZES models of different size.
    """
    seen = np.isfinite(log2_parameters_M) & np.isfinite(log2_tokens_M)
    x, y = log2_parameters_M[seen], log2_tokens_M[seen]
    if len(np.unique(x)) < FEWEST_SIZES:
        return OverSizes(len(x), math.nan, math.nan, math.nan)
    found = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(x) - 2) * found.stderr
    return OverSizes(len(x), float(found.slope), float(found.slope - half), float(found.slope + half))


def lead(found: OverSeeds) -> str:
    """heads_lead or icl_leads where the interval of the mean lag excludes 0, else unresolved."""
    if not math.isfinite(found.mean) or found.low <= 0 <= found.high:
        return "unresolved"
    return "heads_lead" if found.mean > 0 else "icl_leads"


def means(values: Sequence[float]) -> float:
    """The mean of those that are finite; NaN if none is."""
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan
