"""Sums and means of heads that are read step by step, against loops over the rows of all steps."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sih.results.by_head import HeadTable, listed_in
from sih.results.heads import HeadSums, mean_over_heads, means_over_heads, smallest_excess
from sih.scores import Series

STEPS, SHAPE = [0, 1, 2, 4], (2, 3)
NULLS = {"null_a": ("a_sum", "a_own", "a_count"), "null_b": ("b_sum", "b_own", "b_count")}
COLUMNS = ["total", "events", *(c for null in NULLS.values() for c in null)]


def series(name: str, **more) -> Series:
    common = {"kind": "heads", "table": "rows", "value": "total", "count": "events", "unit": "", "pool": "texts"}
    return Series(name=name, label=name, smallest_rise=0.1, nulls=NULLS, control="null_a", **common, **more)


@pytest.fixture
def rows() -> dict[int, pd.DataFrame]:
    """At each step but one, heads' rows by document and relation, some of them missing."""
    rng, found = np.random.default_rng(0), {}
    for step in (0, 2, 4):
        n = 400
        layer, head = rng.integers(2, size=n), rng.integers(3, size=n)
        table = pd.DataFrame({"document": [f"d{i}" for i in rng.integers(12, size=n)], "layer": layer, "head": head})
        table["relation"] = rng.choice(["part", "kind", "use"], n)
        table["way"] = rng.choice(["forward", "reverse"], n)
        for column in COLUMNS:
            table[column] = rng.integers(5, size=n) if "count" in column or column == "events" else rng.uniform(size=n)
        found[step] = table
    return found


SPECS = [
    series("all", where={"way": ["forward"]}),
    series("part", where={"way": ["forward"], "relation": ["part"]}),
    series("follows", where={"way": ["reverse"]}, heads_of="all"),
]
CHOSEN_ON = {f"d{i}" for i in range(5)}


@pytest.fixture
def sums(rows) -> list[HeadSums]:
    def read(step: int, columns: list[str]) -> pa.Table | None:
        return pa.Table.from_pandas(rows[step][columns], preserve_index=False) if step in rows else None

    table = HeadTable(read, STEPS, SHAPE, SPECS, CHOSEN_ON)
    documents = dict.fromkeys(listed_in(read, STEPS, {}), 0)
    assert list(documents) == sorted(f"d{i}" for i in range(12))
    return [HeadSums(spec, table, documents, CHOSEN_ON, np.array(STEPS), 1) for spec in SPECS]


def of_rows(rows, spec: Series, column: str, heads: list[int], documents: list[str]) -> np.ndarray:
    """(K, D, C), one row after another."""
    found = np.zeros((len(heads), len(documents), len(STEPS)))
    for step, table in rows.items():
        for row in table.to_dict("records"):
            h = row["layer"] * SHAPE[1] + row["head"]
            mine = all(row[c] in values for c, values in spec.where.items())
            if mine and h in heads and row["document"] in documents:
                found[heads.index(h), documents.index(row["document"]), STEPS.index(step)] += row[column]
    return found


def test_documents_are_listed_by_the_rows_that_are_wanted():
    rows = {"document": ["a", "b", "c", "d"], "kind": ["x", "y", "x", "z"], "way": ["in", "in", "out", "in"]}
    table = pa.table({name: pa.array(column).dictionary_encode() for name, column in rows.items()})

    def read(step: int, columns: list[str]) -> pa.Table | None:
        return table.select(columns) if step else None

    assert listed_in(read, [0, 1], {}) == ["a", "b", "c", "d"]
    assert listed_in(read, [0, 1], {"kind": ["x", "y"], "way": ["in"]}) == ["a", "b"]


@pytest.mark.parametrize("n", range(len(SPECS)))
def test_sums_of_every_head(rows, sums, n):
    one, every = sums[n], list(range(6))
    assert one.followed == [d for d in one.documents if d not in CHOSEN_ON]
    for column in COLUMNS:
        for half, documents in ((True, sorted(CHOSEN_ON)), (False, one.followed), (None, one.documents)):
            want_HC = of_rows(rows, SPECS[n], column, every, documents).sum(1)
            np.testing.assert_allclose(one.total_HC(column, half), want_HC, rtol=1e-12)
        want_HDC = of_rows(rows, SPECS[n], column, [4, 1], one.followed)
        (found_HDC,) = one.table.by_document_HDC(SPECS[n], [column], [4, 1], one.followed)
        np.testing.assert_allclose(found_HDC, want_HDC, rtol=1e-12)
    assert one.measured_C.tolist() == [True, False, True, True]


def test_documents_of_heads_are_the_same_in_blocks_and_at_once(rows, sums, monkeypatch):
    heads = [4, 1, 0]
    for spec, one in zip(SPECS, (s.with_fewest(3) for s in sums), strict=True):
        of = {column: of_rows(rows, spec, column, heads, one.followed) for column in COLUMNS}
        want = smallest_excess([(of[own] - of[null], of[count]) for null, own, count in NULLS.values()], 3)
        few_HC = want[1].sum(1) < 3
        for at_once in (2, 32):
            monkeypatch.setattr("sih.results.heads._TOGETHER", at_once)
            total_HDC, count_HDC = one.by_document_HDC(heads)
            np.testing.assert_allclose(total_HDC, np.where(few_HC[:, None], np.nan, want[0]), rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(count_HDC, want[1])


def test_means_of_chosen_heads_are_those_of_whole_arrays(rows, sums):
    """One pass for all series, a checkpoint at a time, against the arrays of all checkpoints."""
    heads = [[5, 0, 3], [2], [5, 0, 3]]
    wanted = [(one.with_fewest(3), mine) for one, mine in zip(sums, heads, strict=True)]
    found = means_over_heads(sums[0].table, wanted, checkpoints=len(STEPS))
    for spec, one, mine, mean in zip(SPECS, sums, heads, found, strict=True):

        def of(column, spec=spec, one=one, mine=mine):
            return of_rows(rows, spec, column, mine, one.followed)

        want_DC, events_C = mean_over_heads(of("total"), of("events"), 3)
        np.testing.assert_allclose(mean.contribution_DC, want_DC, rtol=1e-10, atol=1e-12)
        assert mean.events_C.tolist() == events_C.tolist()
        of_nulls = [(of(own) - of(null), of(count)) for null, own, count in NULLS.values()]
        want_DC, _ = mean_over_heads(*smallest_excess(of_nulls, 3), 3)
        np.testing.assert_allclose(mean.excess_DC, want_DC, rtol=1e-10, atol=1e-12)
