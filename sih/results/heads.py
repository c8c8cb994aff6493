"""Sums and maps of every head, as arrays: the tables' columns by head, document and checkpoint.

Letters: H heads, D documents, C checkpoints, R rows of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sih.results.by_head import HeadTable, columns_of, encoded
from sih.scores import HeadMap, Series

if TYPE_CHECKING:
    import pyarrow as pa


class HeadSums:
    """One series' sums for every head, document and checkpoint, as stored in the cells.

    `documents` (D) are in order; `chosen_on_D` marks the half that heads are chosen
    on, and `opportunities_D` counts how often each could have an event. Heads are followed on those of the other half
    that could have any, `followed_D`: the rest would count as certain zeros. `measured_C`: checkpoints with a result.
    """

    def __init__(
        self,
        spec: Series,
        table: HeadTable,
        documents: Mapping[str, int],
        chosen_on: set[str],
        steps: np.ndarray,
    ) -> None:
        self.spec, self.table, self.documents, self.steps = spec, table, list(documents), steps
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

    def columns(self, null: str | None = None) -> tuple[str, str | None]:
        """The columns of the value, or of a null, and of its counts."""
        if null is None:
            return self.spec.value, self.spec.count
        value, _, count = self.spec.nulls[null]
        return value, count

    def total_HC(self, column: str | None, half: bool | None = None) -> np.ndarray:
        """Sum over documents: of the choosing half (True), of the other (False), or of all (None)."""
        return self.table.total_HC(self.spec, column, half)

    def by_document_HDC(self, heads: Sequence[int]) -> dict[str | None, np.ndarray]:
        """Every column for these heads and the documents they are followed on, 0 where a head had no event."""
        columns = columns_of(self.spec)
        found = self.table.by_document_HDC(self.spec, columns, heads, self.followed)
        return dict(zip(columns, found, strict=True))


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
    table: HeadTable, wanted: Sequence[tuple[HeadSums, Sequence[int]]], fewest: int, checkpoints: int
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
            for spec, mean in ((wanted[n][0].spec, found[n]) for n in together):
                at_least = fewest if spec.count else 1
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


def is_in(column: "pa.ChunkedArray", values: Sequence[Any]) -> np.ndarray:
    """Which rows have one of the values, (R,) bool."""
    names, code_R = encoded(column)
    return np.array([name in values for name in names], dtype=bool)[code_R]


def largest(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The elementwise maximum, ignoring NaN; NaN where all values are NaN."""

    return np.fmax.reduce(list(arrays))
