"""Tables by head and document, read step by step: what is kept of them fits the memory at any size of the model.

Letters: H heads, D documents, C checkpoints, R rows of a table at one checkpoint, G groups of rows, K chosen heads.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from sih.scores import Series

_READERS = 2
Column = str | tuple[str, str] | None  # of the table; the difference of two of its columns; 1 in every row
Read = Callable[[int, list[str]], pa.Table | None]  # the columns of the table at a step; None where there is none


@dataclass(frozen=True)
class Rows:
    """Rows of one checkpoint that some series reads, by head: those of head h are `first_H[h]` to `first_H[h + 1]`.

    `document_R` and `group_R` are codes of the table.
    """

    first_H: np.ndarray
    document_R: np.ndarray
    group_R: np.ndarray
    columns: Mapping[Column, np.ndarray]

    def of(self, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places of these heads' rows, and which of `heads` each belongs to."""
        count_K = self.first_H[heads + 1] - self.first_H[heads]
        k_R = np.repeat(np.arange(len(heads)), count_K)
        before_K = np.cumsum(count_K) - count_K
        return self.first_H[heads][k_R] + np.arange(len(k_R)) - before_K[k_R], k_R

    def column(self, which: Column, places: np.ndarray) -> np.ndarray:
        """A column at these places, float64."""
        return np.ones(len(places)) if which is None else self.columns[which][places].astype(float)


@dataclass(frozen=True)
class Sums:
    """What the rows of S series add up to, on the following and on the choosing half of the documents.

    `total_CSX2H`: X is the place in `columns`. `measured_CS`: which checkpoints have a row of a series.
    """

    columns: list[Column]
    total_CSX2H: np.ndarray
    measured_CS: np.ndarray


class HeadTable:
    """One table of a score, for head series whose pools of documents have none in common.

    Args:
        shape: layers and heads in a layer.
        chosen_on: the documents that heads are chosen on.
    """

    def __init__(
        self, read: Read, steps: Sequence[int], shape: tuple[int, int], specs: Sequence[Series], chosen_on: set[str]
    ) -> None:
        self._read, self._steps, self.shape = read, list(steps), shape
        self._specs, self._chosen_on = list(specs), chosen_on
        self._where = list(dict.fromkeys(column for s in specs for column in s.where))
        self._documents: dict[str, int] = {}
        self._groups: dict[tuple, int] = {}
        self._known: dict[str, np.ndarray] = {}
        self._followed: dict[str, dict[str, int]] = {}
        self._place = {s.name: n for n, s in enumerate(specs)}

    @property
    def heads(self) -> int:
        """Of the whole model."""
        return self.shape[0] * self.shape[1]

    def total_HC(self, spec: Series, column: Column, half: bool | None) -> np.ndarray:
        """Sum over documents: of the choosing half (True), of the other (False), or of all (None)."""
        sums, _ = self.all_heads
        both_C2H = sums.total_CSX2H[:, self._place[spec.name], sums.columns.index(column)]
        return np.array((both_C2H.sum(1) if half is None else both_C2H[:, int(half)]).T, order="C")

    def measured_C(self, spec: Series) -> np.ndarray:
        """Which checkpoints have a row of the series, (C,) bool."""
        sums, _ = self.all_heads
        return sums.measured_CS[:, self._place[spec.name]]

    def of(self, rows: Rows, spec: Series, heads: Sequence[int], documents: Sequence[str]) -> "RowsOf":
        """The series' rows of these heads and documents at one checkpoint."""
        places, k_R = rows.of(np.array(heads, dtype=int))
        d_R = self._places(spec.name, documents)[rows.document_R[places]]
        mine = self._of(spec)[rows.group_R[places]] & (d_R >= 0)
        places = places[mine]
        return RowsOf(k_R[mine], d_R[mine], lambda column: rows.column(column, places))

    def at_hand(self) -> Iterator[tuple[int, Rows]]:
        """For each checkpoint with rows, those of all heads on the following half."""
        _, rows = self.all_heads
        return ((c, at) for c, at in enumerate(rows) if at is not None)

    def chosen(self, wanted: Sequence[tuple[Series, np.ndarray]]) -> Iterator[tuple[int, Rows]]:
        """For each checkpoint with rows, those of at least the wanted heads on the following half.

        They are at hand where the table was read for all heads; otherwise only those are read.
        """
        if "all_heads" in self.__dict__:
            yield from self.at_hand()
            return
        specs = [spec for spec, _ in wanted]
        every = self._columns(specs)
        mine_H = np.zeros(self.heads, dtype=bool)
        for _, heads in wanted:
            mine_H[heads] = True
        for c, coded in self._coded(specs, every):
            yield c, self._by_head(coded, mine_H[coded.head_R] & ~self._half()[coded.document_R], every)

    @cached_property
    def all_heads(self) -> tuple[Sums, list[Rows | None]]:
        """The sums of every series, and the following half's rows at each checkpoint: one pass over the table."""
        columns, shape = self._columns(self._specs), (len(self._steps), len(self._specs))
        sums = Sums(columns, np.zeros((*shape, len(columns), 2, self.heads)), np.zeros(shape, dtype=bool))
        rows: list[Rows | None] = [None] * len(self._steps)
        for c, coded in self._coded(self._specs, columns):
            half_R, groups = self._half()[coded.document_R], len(self._groups)
            place_R = ((coded.group_R * 2 + half_R) * self.heads + coded.head_R).astype(np.intp)
            total_GX2H = np.empty((groups, *sums.total_CSX2H.shape[2:]))
            for x, column in enumerate(columns):
                total_R = np.bincount(place_R, coded.column(column), groups * 2 * self.heads)
                total_GX2H[:, x] = total_R.reshape(groups, 2, self.heads)
            here_G = np.bincount(coded.group_R, minlength=groups) > 0
            for s, mine_G in enumerate(map(self._of, self._specs)):
                sums.total_CSX2H[c, s] = total_GX2H[mine_G].sum(0)
                sums.measured_CS[c, s] = here_G[mine_G].any()
            rows[c] = self._by_head(coded, ~half_R, columns)
        return sums, rows

    @staticmethod
    def _columns(specs: Sequence[Series]) -> list[Column]:
        return list(dict.fromkeys(column for spec in specs for column in columns_of(spec)))

    def _of(self, spec: Series) -> np.ndarray:
        """For each group so far, whether it is of the series, (G,) bool."""

        def mine(group: tuple) -> bool:
            return all(group[self._where.index(column)] in values for column, values in spec.where.items())

        return self._by_code(f"group of {spec.name}", self._groups, mine)

    def _half(self) -> np.ndarray:
        """For each document so far, whether heads are chosen on it, (D,) bool."""
        return self._by_code("half", self._documents, self._chosen_on.__contains__)

    def _places(self, series: str, documents: Sequence[str]) -> np.ndarray:
        """For each document so far, its place among those that the series follows; -1 for others."""
        if series not in self._followed:
            self._followed[series] = {d: n for n, d in enumerate(documents)}
        place = self._followed[series]
        return self._by_code(f"place in {series}", self._documents, lambda d: place.get(d, -1))

    def _by_code(self, what: str, codes: Mapping[Any, int], value: Callable[[Any], Any]) -> np.ndarray:
        """The value of everything that has a code so far; computed again only when there are more codes."""
        if what not in self._known or len(self._known[what]) < len(codes):
            self._known[what] = np.array([value(one) for one in codes])
        return self._known[what]

    def _coded(self, specs: Sequence[Series], columns: Sequence[Column]) -> Iterator[tuple[int, "_Coded"]]:
        """The rows of these series at each checkpoint that has any table."""
        wanted = ["layer", "head", "document", *self._where]
        for column in columns:
            wanted += [] if column is None else [column] if isinstance(column, str) else column
        read = list(dict.fromkeys(wanted))
        for c, table in enumerate(_ahead(self._read, self._steps, read)):
            if table is None or not len(table):
                continue
            group_R = self._group_codes(table)
            mine = _places(np.any([self._of(s) for s in specs], axis=0)[group_R])
            names, code_R = encoded(table["document"])
            of_name = np.array([self._documents.setdefault(str(name), len(self._documents)) for name in names])
            layer_R, head_R = (_array(table[name])[mine].astype(np.int32) for name in ("layer", "head"))
            yield c, _Coded(table, mine, layer_R * self.shape[1] + head_R, of_name[code_R[mine]], group_R[mine])

    def _group_codes(self, table: pa.Table) -> np.ndarray:
        """The code of each row's values of the columns that some series chooses by."""
        code_R = np.zeros(len(table), dtype=np.int32)
        tuples: list[tuple] = [()]
        for column in self._where:
            values, more_R = encoded(table[column])
            tuples = [(*t, value) for t in tuples for value in values]
            if len(values) > 1:
                code_R *= len(values)
                code_R += more_R
        here = np.flatnonzero(np.bincount(code_R, minlength=len(tuples)))
        of_tuple = np.zeros(len(tuples), dtype=np.int32)
        of_tuple[here] = [self._groups.setdefault(tuples[n], len(self._groups)) for n in here]
        return of_tuple[code_R]

    def _by_head(self, coded: "_Coded", mine_R: np.ndarray, columns: Sequence[Column]) -> Rows:
        """These rows in the order of their heads, in the smallest types."""
        mine = np.flatnonzero(mine_R)
        mine = mine[np.argsort(coded.head_R[mine].astype(np.int16), kind="stable")]
        first_H = np.concatenate([[0], np.cumsum(np.bincount(coded.head_R[mine], minlength=self.heads))])
        kept: dict[Column, np.ndarray] = {c: _small(coded.column(c, mine)) for c in columns if c is not None}
        return Rows(first_H, _small(coded.document_R[mine]), _small(coded.group_R[mine]), kept)


class RowsOf:
    """Rows of some heads and documents at one checkpoint, in the order of the heads, by number: `k_R` and `d_R`."""

    def __init__(self, k_R: np.ndarray, d_R: np.ndarray, column: Callable[[Column], np.ndarray]) -> None:
        self.k_R, self.d_R, self._column = k_R, d_R, column
        self._known: dict[Column, np.ndarray] = {}

    def __getitem__(self, column: Column) -> np.ndarray:
        """A column, float64."""
        if column not in self._known:
            self._known[column] = self._column(column)
        return self._known[column]

    def of_first(self, heads: int) -> "RowsOf":
        """Those of the first heads."""
        end = int(np.searchsorted(self.k_R, heads))
        return RowsOf(self.k_R[:end], self.d_R[:end], lambda column: self[column][:end])


@dataclass(frozen=True)
class _Coded:
    """Rows of one checkpoint in codes: the head's number in the model, the document and the group so far."""

    table: pa.Table
    places_R: np.ndarray | slice  # in the table
    head_R: np.ndarray
    document_R: np.ndarray
    group_R: np.ndarray

    def column(self, which: Column, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """A column of these rows, or of some of them."""
        if which is None:
            return np.ones(len(self.head_R))[rows]
        if isinstance(which, str):
            return self._column(which, rows)
        one, other = (self._column(name, rows).astype(np.float32) for name in which)
        return one - other

    def _column(self, name: str, rows: np.ndarray | slice) -> np.ndarray:
        values = _array(self.table[name])
        return values[self.places_R][rows] if isinstance(self.places_R, slice) else values[self.places_R[rows]]


def listed_in(read: Read, steps: Sequence[int], where: Mapping[str, Collection[Any]]) -> list[str]:
    """Every document that a table names at any step in a row with one of each column's values, sorted."""
    found: set[str] = set()
    for table in filter(None, _ahead(read, steps, ["document", *where])):
        names, code_R = encoded(table["document"])
        mine_R = np.ones(len(table), dtype=bool)
        for column, values in where.items():
            mine_R &= is_in(table[column], values)
        found |= {str(names[code]) for code in np.flatnonzero(np.bincount(code_R[mine_R], minlength=len(names)))}
    return sorted(found)


def is_in(column: pa.ChunkedArray, values: Collection[Any]) -> np.ndarray:
    """Which rows have one of the values, (R,) bool."""
    names, code_R = encoded(column)
    return np.array([name in values for name in names], dtype=bool)[code_R]


def columns_of(spec: Series) -> list[Column]:
    """What is read of a series: the value and its count, and for each null the value beyond it and their count."""
    of_nulls = [column for null, own, count in spec.nulls.values() for column in ((own, null), count)]
    return list(dict.fromkeys([spec.value, spec.count, *of_nulls]))


def encoded(column: pa.ChunkedArray) -> tuple[list, np.ndarray]:
    """Its distinct values, and the code of each row."""
    encoded = column.unify_dictionaries().combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """The values, without a copy where they lie together."""
    return column.chunk(0).to_numpy(zero_copy_only=False) if column.num_chunks == 1 else column.to_numpy()


def _places(mine_R: np.ndarray) -> np.ndarray | slice:
    """Where it is True: a slice if there is no gap between them, since what that chooses is not copied."""
    first, count = int(mine_R.argmax()), int(mine_R.sum())
    return slice(first, first + count) if mine_R[first : first + count].all() else np.flatnonzero(mine_R)


def _small(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 on in the smallest type that holds them; other values as they are."""
    if values.dtype.kind not in "iu" or not len(values) or values.min() < 0:
        return values
    return values.astype(np.min_scalar_type(int(values.max())))


def _ahead(read: Read, steps: Sequence[int], columns: list[str]) -> Iterator[pa.Table | None]:
    """The columns at each step; the next two steps are read meanwhile."""
    with ThreadPoolExecutor(_READERS) as readers:
        coming = deque(readers.submit(read, step, columns) for step in steps[:_READERS])
        for n in range(len(steps)):
            table = coming.popleft().result()
            coming.extend(readers.submit(read, step, columns) for step in steps[n + _READERS : n + _READERS + 1])
            yield table
