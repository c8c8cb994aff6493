"""Sums and maps of every head, as arrays: the tables' columns by head, document and checkpoint.

Letters: H heads, D documents, C checkpoints, R rows of a table.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sih.results.by_head import Column, HeadTable, RowsOf, is_in
from sih.results.trajectory import label
from sih.scores import HeadMap, Series

if TYPE_CHECKING:
    import pyarrow as pa

SUPPORT = 0.8  # share of the checkpoints at which a head must have enough events


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
        self.fewest = max(1, fewest) if spec.count else 1
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
        found.fewest = max(1, fewest) if self.spec.count else 1
        return found

    def total_HC(self, column: Column, half: bool | None = None) -> np.ndarray:
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
        return ratio(self.total_HC(self.spec.value, half), self.total_HC(self.spec.count, half), self.fewest)

    def excess_HC(self, half: bool | None = None) -> np.ndarray:
        """Every head's value minus its largest null, at the same events, (H, C); NaN as in `value_HC`."""
        found = []
        for null, own, count in self.spec.nulls.values():
            beyond_HC, count_HC = self.total_HC((own, null), half), self.total_HC(count, half)
            found.append(ratio(beyond_HC, count_HC, self.fewest))
        return np.fmin.reduce(found)

    def half_HC(self, reverse: str | None = None) -> np.ndarray:
        """What every head is chosen by, on the choosing half, (H, C): its excess over the largest null, if it has any.

        Args:
            reverse: a null; the null's excess over the score instead.
        """
        if reverse is None:
            return self.excess_HC(True) if self.spec.nulls else self.value_HC(True)
        null, own, count = self.spec.nulls[reverse]
        return -ratio(self.total_HC((own, null), True), self.total_HC(count, True), self.fewest)

    def of_head(self, head: str) -> tuple[np.ndarray, np.ndarray]:
        """One head's value and largest null over training, (C,) each, where it was not chosen; NaN without nulls."""
        h = [label(*x) for x in self.heads].index(head)
        value_C = self.value_HC(False)[h]
        return value_C, value_C - self.excess_HC(False)[h] if self.spec.nulls else np.full(len(value_C), np.nan)

    def by_document_HDC(self, heads: Sequence[int], reverse: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What `half_HC` is of, on the other half, by document: sums and counts, (heads, D, C).

        The sums are NaN with fewer than `fewest` events in all documents together.
        """
        shape = len(heads), len(self.followed)
        total_CHD, count_CHD = (np.zeros((len(self.steps), *shape)) for _ in range(2))
        for c, rows in self.table.at_hand():
            mine = self.table.of(rows, self.spec, heads, self.followed)
            total_R, count_R = self.events(mine, len(heads), reverse)
            place_R = mine.k_R * shape[1] + mine.d_R
            total_CHD[c], count_CHD[c] = (np.bincount(place_R, of_R, math.prod(shape)).reshape(shape)
                                          for of_R in (total_R, count_R))  # fmt: skip
        total_CHD[count_CHD.sum(2) < self.fewest] = np.nan
        total_HDC, count_HDC = (np.ascontiguousarray(np.moveaxis(x, 0, 2)) for x in (total_CHD, count_CHD))
        return total_HDC if reverse is None else -total_HDC, count_HDC

    def events(self, rows: RowsOf, heads: int, reverse: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What each row adds to its head's sum and count, (R,) each: of the value, or of its excess over a null.

        The null is, for every head, the one that leaves least of those with `fewest` events, or `reverse`. A head
        without such a null has no events.
        """
        spec = self.spec
        nulls = [null for name, null in spec.nulls.items() if reverse in (None, name)]
        if not nulls:
            return rows[spec.value], rows[spec.count]
        of_nulls = [(rows[own, null], rows[count]) for null, own, count in nulls]
        mean_NH = np.stack([
            ratio(np.bincount(rows.k_R, total, heads), np.bincount(rows.k_R, count, heads), self.fewest, np.inf)
            for total, count in of_nulls
        ])  # fmt: skip
        least_H = np.where(np.isfinite(mean_NH.min(0)), mean_NH.argmin(0), -1)
        least_R = least_H[rows.k_R]
        total_R, count_R = (np.zeros(len(least_R)) for _ in range(2))
        for n, (total, count) in enumerate(of_nulls):
            mine = least_R == n
            total_R[mine], count_R[mine] = total[mine], count[mine]
        return total_R, count_R


def ratio(total: np.ndarray, count: np.ndarray, fewest: int, otherwise: float = np.nan) -> np.ndarray:
    """total / count, elementwise, where the count is at least `fewest` (1 or more), `otherwise` elsewhere."""
    return np.divide(total, count, out=np.full(count.shape, otherwise), where=count >= fewest)


def chosen_rows(table: pd.DataFrame, where: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """The rows whose columns have one of the values that `where` gives for them."""
    mine = np.ones(len(table), dtype=bool)
    for column, values in where.items():
        mine &= _among(table[column], list(values))
    return table[mine]


def _among(column: pd.Series, values: list[Any]) -> np.ndarray:
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return column.isin(values).to_numpy()
    return np.append(column.cat.categories.isin(values), False)[column.cat.codes]  # the last for -1, a missing value


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
