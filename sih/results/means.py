"""Means over chosen heads, by document: what a head series is over training.

Letters: H or K heads, D documents, C checkpoints, R rows of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sih.results.by_head import HeadTable
from sih.results.heads import HeadSums, ratio


@dataclass(frozen=True)
class MeanOverHeads:
    """The mean over heads of each head's own index, as what each document contributes to it.

    The mean over documents of `contribution_DC` is the mean index, and its scatter is the index's uncertainty to first
    order (the heads' ratios are linearised). `excess_DC`: the same for the index minus its largest null, None without
    nulls. `events_C`: the events of all heads together.
    """

    contribution_DC: np.ndarray
    excess_DC: np.ndarray | None
    events_C: np.ndarray


def means_over_heads(
    table: HeadTable, wanted: Sequence[tuple[HeadSums, Sequence[int]]], checkpoints: int
) -> list[MeanOverHeads]:
    """The means of several series of one table over chosen heads, in one pass over it, a checkpoint at a time."""
    found = [
        MeanOverHeads(
            np.full((len(sums.followed), checkpoints), np.nan),
            np.full((len(sums.followed), checkpoints), np.nan) if sums.spec.nulls else None,
            np.zeros(checkpoints),
        )
        for sums, _ in wanted
    ]
    alike = _of_the_same_rows(wanted)
    for c, rows in table.chosen([(sums.spec, np.array(heads, dtype=int)) for sums, heads in wanted]):
        for together in alike:
            first, heads = wanted[together[0]]
            of_all = table.of(rows, first.spec, heads, first.followed)
            for n in together:
                (sums, heads), mean = wanted[n], found[n]
                mine = of_all.of_first(len(heads))
                of_mean = mine[sums.spec.value], mine[sums.spec.count]
                shape = len(heads), len(sums.followed)
                mean.contribution_DC[:, c] = mean_over_heads(*of_mean, mine.k_R, mine.d_R, shape, sums.fewest)
                mean.events_C[c] = of_mean[1].sum()
                if mean.excess_DC is not None:
                    of_excess = sums.events(mine, len(heads))
                    mean.excess_DC[:, c] = mean_over_heads(*of_excess, mine.k_R, mine.d_R, shape, sums.fewest)
    return found


def _of_the_same_rows(wanted: Sequence[tuple[HeadSums, Sequence[int]]]) -> list[list[int]]:
    """Series of the same documents and rows, and of the first heads of the first of them, together."""
    found: dict[tuple, list[list[int]]] = {}
    for n in sorted(range(len(wanted)), key=lambda n: -len(wanted[n][1])):
        sums, heads = wanted[n]
        groups = found.setdefault(((*sums.followed,), tuple((k, (*v,)) for k, v in sums.spec.where.items())), [])
        mine = next((group for group in groups if wanted[group[0]][1][: len(heads)] == heads), None)
        if mine is None:
            groups.append([n])
        else:
            mine.append(n)
    return [group for groups in found.values() for group in groups]


def mean_over_heads(
    total_R: np.ndarray, count_R: np.ndarray, head_R: np.ndarray, document_R: np.ndarray, shape: tuple[int, int],
    fewest: int,
) -> np.ndarray:  # fmt: skip
    """The mean over heads of each head's own index, total / count, as what each document contributes to it.

    Every head has the same weight, however few events it has. A head with fewer than `fewest` events is left out;
    where that is more than half of the heads, there is no mean (NaN). Rows without a value (NaN) hold no events.

    Args:
        total_R, count_R: what a row adds to both sums of its head. head_R, document_R: which of `shape` (heads,
            documents) it belongs to.

    Returns:
        (D,), whose mean over documents is the mean index, and whose scatter is its uncertainty to first order (the
        heads' ratios are linearised).
    """
    heads, documents = shape
    seen_R = np.isfinite(total_R)
    total_R, count_R = np.where(seen_R, total_R, 0.0), count_R * seen_R
    total_H, events_H = (np.bincount(head_R, of_R, heads) for of_R in (total_R, count_R))
    used = int((events_H >= fewest).sum())
    if 2 * used < heads:
        return np.full(documents, np.nan)
    value_H = ratio(total_H, events_H, fewest, 0.0)
    weight_H = ratio(np.ones(heads), events_H, fewest, 0.0) / used
    beyond_R = weight_H[head_R] * (total_R - value_H[head_R] * count_R)
    return value_H.sum() / used + documents * np.bincount(document_R, beyond_R, documents)
