"""What a run's tables hold, whatever the options: what is described, which steps have it, and its rows and sums.

Nothing here knows any score: the description beside the cells says which tables and columns hold a series.

Letters: H heads, C checkpoints.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sih.errors import SihError
from sih.results.by_head import HeadTable, listed_in
from sih.results.heads import HeadSums, chosen_rows, mapped
from sih.results.run import Run
from sih.scores import Curve, Effects, FirstOrder, HeadMap, Series

if TYPE_CHECKING:
    import pyarrow as pa


class Stored:
    """A run's tables at its measured checkpoints.

    Args:
        steps: only these of the run's checkpoints; all of them when None.

    Raises:
        SihError: there is no result.
    """

    def __init__(self, run: Run, steps: Sequence[int] | None = None) -> None:
        self.run, self.seed = run, run.record.seed
        measured = run.steps()
        self.steps = np.array(measured if steps is None else [s for s in measured if s in set(steps)], dtype=int)
        self._read: dict[tuple[str, str], pd.DataFrame | None] = {}
        if len(self.steps) == 0:
            raise SihError(f"{run.root}: no measured checkpoints yet; run python -m sih.sweep first")

    @cached_property
    def described(self) -> dict[str, dict[str, Series]]:
        """Each score's series, by name. Raises SihError when two scores offer a series of the same name."""
        found: dict[str, dict[str, Series]] = {}
        owner: dict[str, str] = {}
        for score, description in self.run.descriptions().items():
            found[score] = {s["name"]: Series(**s) for s in description["series"]}
            for name in found[score]:
                if name in owner:
                    raise SihError(f"the scores {owner[name]} and {score} both offer a series {name}; rename one")
                owner[name] = score
        return found

    @cached_property
    def tables(self) -> dict[str, str]:
        """The name of every table, and the score that wrote it."""
        return self.run.tables()

    @cached_property
    def manifests(self) -> dict[int, dict[str, dict[str, Any]]]:
        """All manifests, by step and score."""
        return self.run.manifests()

    @cached_property
    def maps(self) -> list[HeadMap]:
        """The maps that the scores offer: one number for every head at one checkpoint."""
        return [HeadMap(**m) for d in self.run.descriptions().values() for m in d["maps"]]

    @cached_property
    def curves(self) -> list[Curve]:
        """The curves that the scores offer: one score over the context at each checkpoint."""
        return [Curve(**c) for d in self.run.descriptions().values() for c in d.get("curves", ())]

    @cached_property
    def effects_kept(self) -> Effects | None:
        """Where a score keeps the effects of taking heads out; None where none has measured any."""
        kept = [Effects(**d["effects"]) for d in self.run.descriptions().values() if d.get("effects")]
        return next((e for e in kept if self.has(e.sets)), None)

    @cached_property
    def first_order(self) -> FirstOrder | None:
        """Where a score keeps the first-order effects of heads; None where none has measured any."""
        kept = [FirstOrder(**d["first_order"]) for d in self.run.descriptions().values() if d.get("first_order")]
        return next((f for f in kept if self.has(f.table)), None)

    @cached_property
    def all_sums(self) -> dict[str, HeadSums]:
        """Sums of every head, however few its events, by series name; without the series that no checkpoint has."""
        found: dict[str, HeadSums] = {}
        for score, by_name in self.described.items():
            specs = [s for s in by_name.values() if s.kind == "heads" and self.has(s.table)]
            documents = {s.name: self._documents(score, s) for s in specs}
            of_pool = {s.pool: {d for t in specs if t.pool == s.pool for d in documents[t.name] or {}} for s in specs}
            for name in dict.fromkeys(s.table for s in specs):
                mine = [s for s in specs if s.table == name]
                pools = {s.pool: of_pool[s.pool] for s in mine}
                apart = all(pools.values()) and len(set().union(*pools.values())) == sum(map(len, pools.values()))
                for together in [list(pools)] if apart else [[pool] for pool in pools]:
                    of_pools = [s for s in mine if s.pool in together]
                    found |= self._sums_of(score, name, of_pools, documents, {p: pools[p] for p in together})
        return found

    def _sums_of(
        self, score: str, name: str, specs: list[Series], documents: Mapping[str, dict[str, int] | None],
        pools: Mapping[str, set[str]],
    ) -> dict[str, HeadSums]:  # fmt: skip
        """Those of the series of one table, over pools of documents that are known and have none in common, or one."""
        file, there = self.run.scores[score].table_file, set(self.steps_with(name))

        shared = set.intersection(*(set(s.where) for s in specs))  # no series wants a row without one of these values
        where = {column: {value for s in specs for value in s.where[column]} for column in shared}

        def read(step: int, columns: list[str]) -> "pa.Table | None":
            return self.run.part(file(step, name), columns, where) if step in there else None

        steps, shape = [int(s) for s in self.steps], self.shape(score)
        listed = [] if all(documents[s.name] for s in specs) else listed_in(read, steps, where)
        chosen_on = set().union(*(self._half(sorted(of_pool or listed), pool) for pool, of_pool in pools.items()))
        found: dict[str, HeadSums] = {}
        for follows in (False, True):  # the rows of series that follow others' heads are read later, of those heads
            mine = [s for s in specs if (s.heads_of is not None) == follows]
            table = HeadTable(read, steps, shape, mine, chosen_on)
            found |= {
                s.name: HeadSums(s, table, documents[s.name] or dict.fromkeys(listed, 0), chosen_on, self.steps, 1)
                for s in mine
            }
        return {s.name: found[s.name] for s in specs}

    def head_maps(self, wanted: Sequence[HeadMap], steps: Sequence[int], min_events: int) -> dict[str, np.ndarray]:
        """Maps by name, (C, H), at some of the chosen steps.

        NaN where a head has no value, or fewer than `min_events` events.
        """
        found: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(m.table for m in wanted):
            score, maps, there = self.tables[name], [m for m in wanted if m.table == name], {*self.steps_with(name)}
            columns, shape = sorted({c for m in maps for c in m.columns()}), self.shape(score)
            found |= {m.name: np.full((len(steps), shape[0] * shape[1]), np.nan) for m in maps}
            for c, step in enumerate(steps):
                file = self.run.scores[score].table_file(step, name)
                table = self.run.part(file, columns) if step in there else None
                for m in maps if table is not None else ():
                    found[m.name][c] = mapped(table, m, shape, min_events)
        return found

    def curve(self, wanted: Curve, steps: Sequence[int]) -> pd.DataFrame:
        """A curve's rows at these of the chosen steps, if measured: `step`, its `x`, and the columns of its values."""
        there = {*self.steps_with(wanted.table)}
        table = self.run.table(wanted.table, [s for s in steps if s in there], wanted.columns())
        return chosen_rows(table, wanted.where)

    def has(self, name: str) -> bool:
        """Whether some chosen checkpoint has a table."""
        return bool(self.steps_with(name))

    def steps_with(self, name: str) -> list[int]:
        """The chosen checkpoints that have a table."""
        cells, damaged = self.run.scores[self.tables[name]], {self.run.root / file for file in self.run.damaged}
        files = {int(step): cells.table_file(int(step), name) for step in self.steps}
        return [step for step, file in files.items() if file.exists() and file not in damaged]

    def rows(self, score: str, spec: Series) -> pd.DataFrame | None:
        """The rows of one series; None where no checkpoint has any."""
        table = self._table(score, spec.table)
        return None if table is None else chosen_rows(table, spec.where)

    def _table(self, score: str, name: str) -> pd.DataFrame | None:
        """The columns of a table that any series but those of heads reads, over all steps."""
        if (score, name) not in self._read:
            specs = [s for s in self.described[score].values() if s.table == name and s.kind != "heads"]
            steps = self.steps_with(name)
            columns = list(dict.fromkeys(c for s in specs for c in s.columns()))
            try:
                self._read[score, name] = self.run.table(name, steps, columns)
            except SihError:
                if not self.run.damaged:
                    raise
                self._read[score, name] = None  # all its files are damaged; `damaged` names each
        return self._read[score, name]

    def _documents(self, score: str, spec: Series) -> dict[str, int] | None:
        """All documents of a series and their opportunities; None when only the table itself lists them."""
        if spec.opportunities is None:
            return None
        table = chosen_rows(pd.read_csv(self.run.scores[score].root / spec.opportunities), spec.where)
        return {str(d): int(n) for d, n in table.groupby("document")["opportunities"].sum().items()}

    def shape(self, score: str) -> tuple[int, int]:
        """Layers, and heads in a layer."""
        shape = self.run.manifest(self.run.scores[score].steps()[0], score)["shape"]
        return shape["layers"], shape["heads"]

    def _half(self, documents: list[str], pool: str) -> set[str]:
        """The seeded half of the documents that heads are chosen on."""
        order = np.random.default_rng([self.seed, *f"half of {pool}".encode()]).permutation(len(documents))
        return {documents[i] for i in order[: len(documents) // 2]}
