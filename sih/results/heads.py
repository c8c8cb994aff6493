"""Sums and maps of every head, as arrays: the tables' columns by head, document and checkpoint.

Letters: H heads, D documents, C checkpoints, R rows of a table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sih.scores import HeadMap, Series


class HeadSums:
    """One series' sums for every head, document and checkpoint, as stored in the cells.

    `heads` (H) are (layer, head). `documents` (D) are in order; `chosen_on_D` marks the half that heads are chosen
    on, and `opportunities_D` counts how often each could have an event. Heads are followed on those of the other half
    that could have any, `followed_D`: the rest would count as certain zeros. `measured_C`: checkpoints with a result.
    """

    def __init__(
        self,
        spec: Series,
        rows: pd.DataFrame,
        heads: list[tuple[int, int]],
        documents: Mapping[str, int],
        chosen_on: set[str],
        steps: np.ndarray,
    ) -> None:
        self.spec, self.heads, self.documents, self.steps = spec, heads, list(documents), steps
        self.opportunities_D = np.array(list(documents.values()))
        self.chosen_on_D = np.array([d in chosen_on for d in self.documents])
        self.followed_D = ~self.chosen_on_D & (self.opportunities_D > 0 if spec.opportunities else True)
        self.measured_C = np.isin(steps, rows["step"].unique())
        width = max(h for _, h in heads) + 1
        codes = pd.Index([layer * width + head for layer, head in heads])
        self._rows = rows
        self._h_R = codes.get_indexer(rows["layer"].to_numpy(dtype=int) * width + rows["head"].to_numpy(dtype=int))
        self._d_R = pd.Index(self.documents).get_indexer(pd.Index(rows["document"]))
        self._c_R = pd.Index(steps).get_indexer(pd.Index(rows["step"]))

    def columns(self, null: str | None = None) -> tuple[str, str | None]:
        """The columns of the value, or of a null, and of its counts."""
        if null is None:
            return self.spec.value, self.spec.count
        value, _, count = self.spec.nulls[null]
        return value, count

    def _column(self, name: str | None) -> np.ndarray:
        """A column by row; without a name every row counts once."""
        return np.ones(len(self._rows)) if name is None else self._rows[name].to_numpy(dtype=float)

    def total_HC(self, column: str | None, half: bool | None = None) -> np.ndarray:
        """Sum over documents: of the choosing half (True), of the other (False), or of all (None)."""
        shape = (len(self.heads), len(self.steps))
        weights = self._column(column)
        if half is not None:
            weights = weights * (self.chosen_on_D[self._d_R] == half)
        place = self._h_R * shape[1] + self._c_R
        return np.bincount(place, weights, shape[0] * shape[1]).reshape(shape)

    def by_document_HDC(self, column: str | None, heads: Sequence[int]) -> np.ndarray:
        """The column for these heads and the documents they are followed on, 0 where a head had no event."""
        kept_D = self.followed_D
        place_D = np.cumsum(kept_D) - 1
        place_H = np.full(len(self.heads), -1)
        place_H[list(heads)] = np.arange(len(heads))
        mine = kept_D[self._d_R] & (place_H[self._h_R] >= 0)
        found = np.zeros((len(heads), int(kept_D.sum()), len(self.steps)))
        at = (place_H[self._h_R[mine]], place_D[self._d_R[mine]], self._c_R[mine])
        np.add.at(found, at, self._column(column)[mine])
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
    total_HDC, count_HDC = (np.zeros_like(x) for x in of_nulls[0])
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


def mapped(table: pd.DataFrame, wanted: HeadMap, min_events: int) -> pd.DataFrame:
    """A map's `value` by `step`, `layer` and `head`: see HeadMap."""
    table = chosen_rows(table, wanted.where)
    keys = ["step", "layer", "head"]
    product = table[list(wanted.total)].astype(float).prod(axis=1, skipna=False)
    parts = table[keys].assign(total=product)
    if wanted.over is None:
        return parts.rename(columns={"total": "value"}).groupby(keys, as_index=False)[["value"]].mean()
    parts = parts.assign(total=parts["total"].fillna(0.0), over=table[wanted.over])
    sums = parts.groupby(keys, as_index=False)[["total", "over"]].sum()
    fewest = min_events if wanted.events else 1
    sums["value"] = sums["total"] / sums["over"].where(sums["over"] >= fewest)
    return sums[[*keys, "value"]]


def largest(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The elementwise maximum, ignoring NaN; NaN where all values are NaN."""

    return np.fmax.reduce(list(arrays))
