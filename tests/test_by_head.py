"""Sums and means of heads that are read step by step, against loops over the rows of all steps."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sih.results.by_head import HeadTable, listed_in
from sih.results.heads import HeadSums
from sih.results.means import means_over_heads
from sih.scores import Series

STEPS, SHAPE = [0, 1, 2, 4], (2, 3)
NULLS = {"null_a": ("a_sum", "a_own", "a_count"), "null_b": ("b_sum", "b_own", "b_count")}
COLUMNS = ["total", "events", *(c for null in NULLS.values() for c in null)]
SUMMED = ["total", "events", ("a_own", "a_sum"), "a_count", ("b_own", "b_sum"), "b_count"]


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


def of_rows(rows, spec: Series, column: str | tuple[str, str], heads: list[int], documents: list[str]) -> np.ndarray:
    """(K, D, C), one row after another."""
    found = np.zeros((len(heads), len(documents), len(STEPS)))
    for step, table in rows.items():
        for row in table.to_dict("records"):
            h = row["layer"] * SHAPE[1] + row["head"]
            mine = all(row[c] in values for c, values in spec.where.items())
            if mine and h in heads and row["document"] in documents:
                value = row[column] if isinstance(column, str) else row[column[0]] - row[column[1]]
                found[heads.index(h), documents.index(row["document"]), STEPS.index(step)] += value
    return found


def slow_mean(total_HDC: np.ndarray, count_HDC: np.ndarray, fewest: int) -> np.ndarray:
    """The mean over heads of each head's ratio, as what each document contributes to it, (D, C): head by head."""
    heads, documents, checkpoints = total_HDC.shape
    found = np.full((documents, checkpoints), np.nan)
    for c in range(checkpoints):
        used = [h for h in range(heads) if count_HDC[h, :, c].sum() >= fewest]
        if 2 * len(used) >= heads:
            of_heads = []
            for h in used:
                events = count_HDC[h, :, c].sum()
                value = total_HDC[h, :, c].sum() / events
                of_heads.append(value + documents * (total_HDC[h, :, c] - value * count_HDC[h, :, c]) / events)
            found[:, c] = np.mean(of_heads, axis=0)
    return found


def smallest_excess(of_nulls: list[tuple[np.ndarray, np.ndarray]], fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """For every head and checkpoint, sums and counts of the null that leaves the least, of those with enough events."""
    total_HDC, count_HDC = (np.zeros(x.shape) for x in of_nulls[0])
    for h, c in np.ndindex(total_HDC.shape[0], total_HDC.shape[2]):
        able = [(t[h, :, c], n[h, :, c]) for t, n in of_nulls if n[h, :, c].sum() >= fewest]
        if able:
            total_HDC[h, :, c], count_HDC[h, :, c] = min(able, key=lambda both: both[0].sum() / both[1].sum())
    return total_HDC, count_HDC


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
    for column in SUMMED:
        for half, documents in ((True, sorted(CHOSEN_ON)), (False, one.followed), (None, one.documents)):
            want_HC = of_rows(rows, SPECS[n], column, every, documents).sum(1)
            np.testing.assert_allclose(
                one.total_HC(column, half), want_HC, rtol=1e-12 if isinstance(column, str) else 1e-5
            )
    assert one.measured_C.tolist() == [True, False, True, True]


@pytest.mark.parametrize("fewest", [0, 1, 3, 12])
def test_excess_of_heads_by_document(rows, sums, fewest):
    heads = [4, 1, 0]
    for spec, one in zip(SPECS, (s.with_fewest(fewest) for s in sums), strict=True):
        of = {column: of_rows(rows, spec, column, heads, one.followed) for column in COLUMNS}
        excess = {name: (of[own] - of[null], of[count]) for name, (null, own, count) in NULLS.items()}
        for reverse in (None, "null_b"):
            of_nulls = [x for name, x in excess.items() if reverse in (None, name)]
            want_HDC, want_count_HDC = smallest_excess(of_nulls, max(1, fewest))  # one event at least
            few_HC = want_count_HDC.sum(1) < max(1, fewest)
            assert few_HC.any()
            assert fewest > 3 or not few_HC.all()
            want_HDC = np.where(few_HC[:, None], np.nan, want_HDC if reverse is None else -want_HDC)
            total_HDC, count_HDC = one.by_document_HDC(heads, reverse)
            np.testing.assert_allclose(total_HDC, want_HDC, rtol=1e-5, atol=1e-6)  # differences in single precision
            np.testing.assert_allclose(count_HDC, want_count_HDC)


@pytest.mark.parametrize("at_hand", [False, True])
def test_means_of_chosen_heads_are_those_of_whole_arrays(rows, sums, at_hand):
    """One pass for all series, a checkpoint at a time, whether the table was read before or not."""
    heads = [[5, 0, 3], [2], [5, 0, 3], [5, 0], [0, 3]]
    ones = [*sums, sums[0], sums[0]]
    wanted = [(one.with_fewest(3), mine) for one, mine in zip(ones, heads, strict=True)]
    if at_hand:
        sums[0].table.all_heads  # noqa: B018
    found = means_over_heads(sums[0].table, wanted, checkpoints=len(STEPS))
    for one, mine, mean in zip(ones, heads, found, strict=True):

        def of(column, one=one, mine=mine):
            return of_rows(rows, one.spec, column, mine, one.followed)

        np.testing.assert_allclose(
            mean.contribution_DC, slow_mean(of("total"), of("events"), 3), rtol=1e-10, atol=1e-12
        )
        assert mean.events_C.tolist() == of("events").sum((0, 1)).tolist()
        of_nulls = [(of(own) - of(null), of(count)) for null, own, count in NULLS.values()]
        want_DC = slow_mean(*smallest_excess(of_nulls, 3), 3)
        np.testing.assert_allclose(mean.excess_DC, want_DC, rtol=1e-5, atol=1e-5)
        assert np.isfinite(want_DC).any()
