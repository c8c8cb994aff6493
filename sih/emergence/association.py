"""Is it more than two curves that both rise? Tests of the onsets' coincidence, of residuals, and over seeds.

The levels of two rising curves always correlate, so no test here uses levels. Within one run even a true
association cannot exclude a common cause, such as the learning-rate schedule; over seeds it is evidence.

Letters: C checkpoints, R runs, N permutations.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from sih.emergence.onset import unimodal_residuals

FEWEST_CONTROLS = 99  # with fewer, the smallest possible p is above .01
FEWEST_SHOWN = 19  # with fewer, no p can reach .05
FEWEST_RUNS = 6  # with four, a perfect order has p = .042, so that nothing could pass with two pairs
PERMUTATIONS = 9999
_FEWEST_BLOCKS = 6
_ROUNDING = 1e-9  # of the values: smaller residuals are none
_FLIPS = 999


def coincidence_p(heads: float, icl: float, controls: Sequence[float]) -> float:
    """p of the distance from the head series' onset to the ICL onset, among control heads' onsets (octaves).

    Under the null the head series is just one of the heads. Controls without an onset (NaN) are ignored;
    NaN with fewer than FEWEST_SHOWN of them.
    """
    onsets = np.array([c for c in controls if math.isfinite(c)])
    if len(onsets) < FEWEST_SHOWN or not (math.isfinite(heads) and math.isfinite(icl)):
        return math.nan
    return float((1 + (np.abs(onsets - icl) <= abs(heads - icl)).sum()) / (1 + len(onsets)))


def residual_association(
    x_C: np.ndarray, heads_C: np.ndarray, icl_C: np.ndarray, bandwidth: float, seed: int
) -> tuple[float, float]:
    """Correlation between the residuals of both series from their unimodal fits, and its two-sided p.

    Blocks of neighbouring checkpoints (3, or a seventh of more than 30 checkpoints) change the sign of their
    part of the sum together, at random; where blocks begin is random too. So each checkpoint keeps its own variance,
    which falls over training, and neighbours stay together. Checkpoints where either value is missing (NaN) are left
    out. NaN with fewer than six blocks, whose signs cannot reach .05, or without residual variance beyond rounding.
    """
    both = np.isfinite(heads_C) & np.isfinite(icl_C)
    count = int(both.sum())
    length = 3 if count <= 30 else round(count / 7)
    if count < _FEWEST_BLOCKS * length:
        return math.nan, math.nan
    y_2C = np.stack([heads_C[both], icl_C[both]])
    residual_2C = np.concatenate([unimodal_residuals(x_C[both], y_C[None], bandwidth) for y_C in y_2C])
    residual_2C[np.abs(residual_2C) <= _ROUNDING * np.ptp(y_2C, axis=1, keepdims=True)] = 0
    h, i = residual_2C - residual_2C.mean(1, keepdims=True)
    scale = float(np.sqrt((h @ h) * (i @ i)))
    if scale == 0:
        return math.nan, math.nan
    observed = float(h @ i)
    rng = np.random.default_rng([seed, *b"residuals"])
    begin_N1 = rng.integers(length, size=(_FLIPS, 1))
    block_NC = (np.arange(count) + begin_N1) // length
    sign_NB = rng.choice([-1.0, 1.0], size=(_FLIPS, int(block_NC.max()) + 1))
    flipped_N = np.take_along_axis(sign_NB, block_NC, axis=1) @ (h * i)
    p = (1 + (np.abs(flipped_N) >= abs(observed) * (1 - 1e-12)).sum()) / (1 + _FLIPS)
    return observed / scale, float(p)


def seed_association(
    heads_R: np.ndarray, icl_R: np.ndarray, sizes: Sequence[str], seed: int
) -> tuple[float, float, int]:
    """Do runs whose heads form later also learn in context later? r within sizes, its one-sided p, runs used.

    Args:
        heads_R, icl_R: onsets of each run, octaves; a run where either is NaN is left out.
        sizes: the model of each run. Runs are permuted only within a size, since both onsets depend on size.

    With one size this is `scipy.stats.permutation_test(permutation_type="pairings")`, which is exact for few
    runs. NaN with fewer than FEWEST_RUNS runs in every size.
    """
    both = np.isfinite(heads_R) & np.isfinite(icl_R)
    h, i, size = heads_R[both], icl_R[both], np.array(sizes)[both]
    groups = [np.flatnonzero(size == s) for s in dict.fromkeys(size)]
    groups = [g for g in groups if len(g) >= FEWEST_RUNS]
    if not groups:
        return math.nan, math.nan, 0
    runs = sum(map(len, groups))
    h, i = (np.concatenate([y[g] - y[g].mean() for g in groups]) for y in (h, i))
    scale = float(np.sqrt((h @ h) * (i @ i)))
    if scale == 0:
        return math.nan, math.nan, runs
    rng = np.random.default_rng([seed, *b"seeds"])
    if len(groups) == 1:
        from scipy import stats  # takes a second

        test = stats.permutation_test(
            (h,), lambda x: x @ i, permutation_type="pairings", alternative="greater", n_resamples=PERMUTATIONS, rng=rng
        )
        return float(h @ i) / scale, float(test.pvalue), runs
    ends = np.cumsum([0, *map(len, groups)])
    parts = [h[a:b] for a, b in itertools.pairwise(ends)]
    permuted_N = [np.concatenate([rng.permutation(p) for p in parts]) @ i for _ in range(PERMUTATIONS)]
    above = (np.array(permuted_N) >= h @ i - 1e-12 * scale).sum()
    return float(h @ i) / scale, float((1 + above) / (1 + PERMUTATIONS)), runs
