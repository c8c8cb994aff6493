"""Sums and maps of every head, as arrays: the tables' columns by head, document and checkpoint.

Letters: H heads, D documents, C checkpoints, R rows of a table.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sih.results.by_head import HeadTable, columns_of, is_in
from sih.results.trajectory import label
from sih.scores import HeadMap, Series

if TYPE_CHECKING:
    import pyarrow as pa

SUPPORT = 0.8  # share of the checkpoints at which a head must have enough events
_TOGETHER = 32  # heads whose documents are gathered at once, since each null is a column


class HeadSums:
    """One series' sums for every head, document and checkpoint, as stored in the cells.

    `documents` (D) are in order; `chosen_on_D` marks the half that heads are chosen
    on, and `opportunities_D` counts how often each could have an event. Heads are followed on those of the other half
    that could have any, `followed_D`: the rest would count as certain zeros. `measured_C`: checkpoints with a result.
    A head with fewer than `fewest` events at a checkpoint has no value there (NaN), if the series counts events.
    """

    def __init__(
        self,
        spec: Series,
        table: HeadTable,
        documents: Mapping[str, int],
        chosen_on: set[str],
        steps: np.ndarray,
        fewest: int,
    ) -> None:
        self.spec, self.table, self.documents, self.steps = spec, table, list(documents), steps
        self.fewest = fewest if spec.count else 1
        self.opportunities_D = np.array(list(documents.values()))
        self.chosen_on_D = np.array([d in chosen_on for d in self.documents])
        self.followed_D = ~self.chosen_on_D & (self.opportunities_D > 0 if spec.opportunities else True)

    @property
    def measured_C(self) -> np.ndarray:
        """Which checkpoints have a row, (C,) bool."""
        return self.table.measured_C(self.spec)

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Every (layer, head) of the model."""
        layers, heads = self.table.shape
        return [(layer, head) for layer in range(layers) for head in range(heads)]

    @cached_property
    def followed(self) -> list[str]:
        """The documents that heads are followed on."""
        return [d for d, kept in zip(self.documents, self.followed_D, strict=True) if kept]

    def with_fewest(self, fewest: int) -> "HeadSums":
        """The same sums, with another least number of events."""
        found = copy.copy(self)
        found.fewest = fewest if self.spec.count else 1
        return found

    def total_HC(self, column: str | None, half: bool | None = None) -> np.ndarray:
        """Sum over documents: of the choosing half (True), of the other (False), or of all (None)."""
        return self.table.total_HC(self.spec, column, half)

    def supported(self, half: bool | None = None) -> np.ndarray:
        """Heads with `fewest` events at SUPPORT of the score's checkpoints, (H,) bool; all if it counts none."""
        if self.spec.count is None:
            return np.ones(len(self.heads), dtype=bool)
        enough_HC = self.total_HC(self.spec.count, half) >= self.fewest
        return enough_HC[:, self.measured_C].mean(1) >= SUPPORT

    def value_HC(self, half: bool | None = None) -> np.ndarray:
        """Every head's value, (H, C), in the score's unit; NaN with fewer than `fewest` events, or without any rows."""
        return self._ratio_HC(self.total_HC(self.spec.value, half), self.total_HC(self.spec.count, half))

    def excess_HC(self, half: bool | None = None) -> np.ndarray:
        """Every head's value minus its largest null, at the same events, (H, C); NaN as in `value_HC`."""
        found = []
        for null, own, count in self.spec.nulls.values():
            own_HC, null_HC, count_HC = (self.total_HC(column, half) for column in (own, null, count))
            found.append(self._ratio_HC(own_HC - null_HC, count_HC))
        return np.fmin.reduce(found)

    def half_HC(self, reverse: str | None = None) -> np.ndarray:
        """What every head is chosen by, on the choosing half, (H, C): its excess over the largest null, if it has any.

        Args:
            reverse: a null; the null's excess over the score instead.
        """
        if reverse is None:
            return self.excess_HC(True) if self.spec.nulls else self.value_HC(True)
        null_HC, own_HC, count_HC = (self.total_HC(column, True) for column in self.spec.nulls[reverse])
        return self._ratio_HC(null_HC - own_HC, count_HC)

    def _ratio_HC(self, total_HC: np.ndarray, count_HC: np.ndarray) -> np.ndarray:
        enough = count_HC >= self.fewest
        return np.divide(total_HC, count_HC, out=np.full(count_HC.shape, np.nan), where=enough)

    def of_head(self, head: str) -> tuple[np.ndarray, np.ndarray]:
        """One head's value and largest null over training, (C,) each, where it was not chosen; NaN without nulls."""
        h = [label(*x) for x in self.heads].index(head)
        value_C = self.value_HC(False)[h]
        return value_C, value_C - self.excess_HC(False)[h] if self.spec.nulls else np.full(len(value_C), np.nan)

    def by_document_HDC(self, heads: Sequence[int], reverse: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What `half_HC` is of, on the other half, by document: sums and counts, (heads, D, C).

        The sums are NaN with fewer than `fewest` events in all documents together.
        """
        blocks = [heads[n : n + _TOGETHER] for n in range(0, max(1, len(heads)), _TOGETHER)]
        found = [self._by_document(block, reverse) for block in blocks]
        total_HDC, count_HDC = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return total_HDC, count_HDC

    def _by_document(self, heads: Sequence[int], reverse: str | None) -> tuple[np.ndarray, np.ndarray]:
        columns = columns_of(self.spec)
        of = dict(zip(columns, self.table.by_document_HDC(self.spec, columns, heads, self.followed), strict=True))
        of_nulls = [
            (of[own] - of[null], of[count])
            for name, (null, own, count) in self.spec.nulls.items()
            if reverse in (None, name)
        ]
        if of_nulls:
            total_HDC, count_HDC = smallest_excess(of_nulls, self.fewest)
        else:
            total_HDC, count_HDC = of[self.spec.value], of[self.spec.count]
        few_HC = count_HDC.sum(1) < self.fewest
        total_HDC = np.where(few_HC[:, None], np.nan, total_HDC if reverse is None else -total_HDC)
        return total_HDC, count_HDC


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
    alike: dict[tuple, list[int]] = {}  # series of the same rows: heads, documents, and choice of rows
    for n, (sums, heads) in enumerate(wanted):
        rows_of = (*heads,), (*sums.followed,), tuple((k, (*v,)) for k, v in sums.spec.where.items())
        alike.setdefault(rows_of, []).append(n)
    for c, rows in table.chosen([(sums.spec, np.array(heads, dtype=int)) for sums, heads in wanted]):
        for together in alike.values():
            sums, heads = wanted[together[0]]
            columns = list(dict.fromkeys(c for n in together for c in columns_of(wanted[n][0].spec)))
            arrays = table.spread(rows, sums.spec, columns, np.array(heads, dtype=int), sums.followed)
            of = {name: array[..., None] for name, array in zip(columns, arrays, strict=True)}
            for mine, mean in ((wanted[n][0], found[n]) for n in together):
                spec, at_least = mine.spec, mine.fewest
                mean.contribution_DC[:, [c]], mean.events_C[[c]] = mean_over_heads(
                    of[spec.value], of[spec.count], at_least
                )
                if mean.excess_DC is not None:
                    of_nulls = [(of[own] - of[null], of[count]) for null, own, count in spec.nulls.values()]
                    mean.excess_DC[:, [c]], _ = mean_over_heads(*smallest_excess(of_nulls, at_least), at_least)
    return found


def mean_over_heads(total_HDC: np.ndarray, count_HDC: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean over heads of each head's own index, total / count, as what each document contributes to it.

    Every head has the same weight, however few events it has. A head with fewer than `fewest` events at a checkpoint
    is left out there; where that is more than half of the heads, the checkpoint is missing (NaN).

    Returns:
        contribution_DC, whose mean over documents is the mean index, and whose scatter is its uncertainty to first
        order (the heads' ratios are linearised); and the events of all heads together, (C,).
    """
    heads, documents, _ = total_HDC.shape
    events_HC = count_HDC.sum(1)
    used_HC = events_HC >= fewest
    with np.errstate(invalid="ignore", divide="ignore"):
        value_HC = np.where(used_HC, total_HDC.sum(1) / events_HC, np.nan)
        beyond_HDC = (total_HDC - value_HC[:, None] * count_HDC) / events_HC[:, None]
        contribution_DC = (np.nansum(value_HC, 0) + documents * np.nansum(beyond_HDC, 0)) / used_HC.sum(0)
    return np.where(2 * used_HC.sum(0) >= heads, contribution_DC, np.nan), events_HC.sum(0)


def smallest_excess(of_nulls: Sequence[tuple[np.ndarray, np.ndarray]], fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """For every head and checkpoint, the excess over the null that leaves least, of those with `fewest` events.

    Args:
        of_nulls: for each null, the value minus the null summed over their common events, and the count, (H, D, C).

    Returns:
        The same for one null by head and checkpoint, the count 0 where no null has enough events.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_NHC = np.stack([np.where(count.sum(1) >= fewest, total.sum(1) / count.sum(1), np.inf)
                             for total, count in of_nulls])  # fmt: skip
    least_HC = mean_NHC.argmin(0)[:, None]
    total_HDC, count_HDC = (np.zeros(x.shape) for x in of_nulls[0])
    for n, (total, count) in enumerate(of_nulls):
        mine = (least_HC == n) & np.isfinite(mean_NHC[n])[:, None]
        total_HDC += np.where(mine, total, 0.0)
        count_HDC += np.where(mine, count, 0.0)
    return total_HDC, count_HDC


def chosen_rows(table: pd.DataFrame, where: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """The rows whose columns have one of the values that `where` gives for them."""
    mine = np.ones(len(table), dtype=bool)
    for column, values in where.items():
        mine &= table[column].isin(list(values)).to_numpy()
    return table[mine]


def mapped(table: "pa.Table", wanted: HeadMap, shape: tuple[int, int], min_events: int) -> np.ndarray:
    """A map at one checkpoint, (H,), NaN where a head has no value: see HeadMap."""
    mine = np.ones(len(table), dtype=bool)
    for column, values in wanted.where.items():
        mine &= is_in(table[column], values)
    heads = shape[0] * shape[1]
    head_R = table["layer"].to_numpy()[mine].astype(int) * shape[1] + table["head"].to_numpy()[mine].astype(int)
    total_R = np.prod([table[c].to_numpy()[mine].astype(float) for c in wanted.total], axis=0)
    if wanted.over is None:
        count_H, fewest = np.bincount(head_R, minlength=heads), 1
    else:
        count_H = np.bincount(head_R, table[wanted.over].to_numpy()[mine], heads)
        total_R, fewest = np.nan_to_num(total_R), min_events if wanted.events else 1
    total_H = np.bincount(head_R, total_R, heads)
    return np.divide(total_H, count_H, out=np.full(heads, np.nan), where=count_H >= fewest)


def largest(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The elementwise maximum, ignoring NaN; NaN where all values are NaN."""

    return np.fmax.reduce(list(arrays))
