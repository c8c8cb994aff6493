"""Which heads emerge, how many, and whether the early ones are still the top heads at the end.

Letters: H heads, D documents, C checkpoints.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sih.emergence.gate import Assessment, assess, false_discovery_q
from sih.emergence.null import paths
from sih.emergence.onset import by_gaps, half_rises

FALSE_DISCOVERIES = 0.05
THREADS = 2
CONTROLS = 199  # at most so many sets of heads that a series' onset is compared with


@dataclass(frozen=True)
class HeadOnsets:
    """For every head: `p_H` and `q_H` (Benjamini-Hochberg) of its emergence, its `t50_H` in octaves, its `rise_H`.

    `emerged_H`: whether its rise is at least delta, with q <= .05. `t50_H` is NaN where it does not.
    """

    p_H: np.ndarray
    q_H: np.ndarray
    t50_H: np.ndarray
    rise_H: np.ndarray
    emerged_H: np.ndarray


def head_onsets(
    x_C: np.ndarray,
    numerator_HDC: np.ndarray,
    denominator_HDC: np.ndarray,
    delta: float,
    bandwidth: float,
    seed: int,
) -> HeadOnsets:
    """Put every head's trajectory through the gate, controlling the false discovery rate over all heads.

    By Benjamini and Hochberg. A head that rises by less than delta has p 1,
    which can only make the other heads' q larger. Missing checkpoints are NaN or have a denominator of 0.
    """
    count = len(numerator_HDC)
    p_H, t50_H, rise_H = np.ones(count), np.full(count, math.nan), np.full(count, math.nan)

    def one(h: int) -> Assessment | None:
        rng = np.random.default_rng([seed, h])
        return assess(x_C, numerator_HDC[h], denominator_HDC[h], 1, delta, bandwidth, rng, p_always=False)

    if count:
        paths(x_C)  # drawn once, not by each thread
    with ThreadPoolExecutor(THREADS) as pool:  # most of the time is spent in numpy, which lets others run
        for h, found in enumerate(pool.map(one, range(count))):
            if found is not None:
                p_H[h], t50_H[h], rise_H[h] = found.p, found.onset.t50, found.onset.rise
    p_H = np.nan_to_num(p_H, nan=1.0)
    q_H = false_discovery_q(p_H)
    emerged_H = q_H <= FALSE_DISCOVERIES
    return HeadOnsets(p_H, q_H, np.where(emerged_H, t50_H, math.nan), rise_H, emerged_H)


def control_onsets(
    x_C: np.ndarray, value_HC: np.ndarray, mine_H: Sequence[bool], bandwidth: float, seed: int
) -> np.ndarray:
    """Onsets of means of random heads, octaves: what a series' onset is compared with.

    Args:
        value_HC: the heads that emerge on the series' score; NaN is missing.
        mine_H: which of them the series is a mean of. A control is the mean of as many, drawn from all of them, since
            the mean of many heads is steadier than one; it differs from the series' own choice.

    Returns:
        At most CONTROLS onsets, each of a different set; NaN where nothing rises. None where there is no choice.
    """
    count, mine = len(value_HC), frozenset(np.flatnonzero(mine_H).tolist())
    possible = math.comb(count, len(mine)) - 1 if mine else 0
    rng = np.random.default_rng([seed, *b"controls"])
    chosen: dict[frozenset[int], None] = {}
    for _ in range(20 * CONTROLS):
        if len(chosen) == min(CONTROLS, possible):
            break
        drawn = frozenset(rng.permutation(count)[: len(mine)].tolist())
        if drawn != mine:
            chosen[drawn] = None
    if not chosen:
        return np.empty(0)
    sets = np.array([sorted(heads) for heads in chosen])
    mean_NC = mean_of(value_HC[sets], axis=1)
    found = np.full(len(sets), math.nan)
    for mine_N, seen_C in by_gaps(mean_NC, 1):
        found[mine_N] = half_rises(x_C[seen_C], mean_NC[np.ix_(mine_N, seen_C)], bandwidth).t50
    return found


@dataclass(frozen=True)
class Overlap:
    """Share of the final checkpoint's top heads that are already on top, (C,); 1 when the sets are equal.

    `ceiling`: how far the two halves of the documents agree at the final checkpoint itself. `chance`: k / heads.
    `index_C`: mean score of the final top heads at each checkpoint, on the half that did not choose them.
    """

    k: int
    final: tuple[int, ...]
    overlap_C: np.ndarray
    index_C: np.ndarray
    ceiling: float
    chance: float


def traced_back(chosen_HC: np.ndarray, drawn_HC: np.ndarray, k: int) -> Overlap:
    """Choose the final checkpoint's top k heads on one half of the documents; find them at each step on the other.

    Args:
        chosen_HC, drawn_HC: scores of the same heads on the two halves; NaN is never on top.
    """
    final = _top(chosen_HC[:, -1], k)
    tops = [_top(drawn_HC[:, c], k) for c in range(drawn_HC.shape[1])]
    overlap_C = np.array([len(set(final) & set(top)) / k if top else math.nan for top in tops])
    return Overlap(k, final, overlap_C, mean_of(drawn_HC[list(final)]), float(overlap_C[-1]), k / len(drawn_HC))


def mean_of(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean over an axis of what is finite; NaN where nothing is."""
    count = np.isfinite(values).sum(axis)
    return np.divide(np.nansum(values, axis), count, out=np.full(count.shape, math.nan), where=count > 0)


def _top(score_H: np.ndarray, k: int) -> tuple[int, ...]:
    """The k heads with the largest scores, ties by head number."""
    order = np.argsort(-np.where(np.isfinite(score_H), score_H, -np.inf), kind="stable")
    return tuple(int(h) for h in order[:k] if np.isfinite(score_H[h]))
