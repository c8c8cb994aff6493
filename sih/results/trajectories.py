"""A run's tables as arrays over training: what the emergence statistics, the tracker and the figures read.

Nothing here knows any score: the description beside the cells says which tables and columns hold a series.

Letters: H heads, D documents, C checkpoints, R rows of a table.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sih.config import EmergenceConfig
from sih.errors import SihError
from sih.results.by_head import HeadTable, listed_in
from sih.results.heads import HeadSums, chosen_rows, mapped
from sih.results.means import MeanOverHeads, means_over_heads
from sih.results.run import Run
from sih.results.trajectory import Trajectory, family, label
from sih.scores import Curve, Effects, FirstOrder, HeadMap, Series

if TYPE_CHECKING:
    import pyarrow as pa


class Trajectories:
    """Every series of a run. Heads are chosen on one half of the documents and followed on the other.

    Args:
        steps: only these of the run's checkpoints; all of them when None.

    Raises:
        SihError: there is no result.
    """

    def __init__(self, run: Run, options: EmergenceConfig, steps: Sequence[int] | None = None) -> None:
        self.run, self.options, self.seed = run, options, run.record.seed
        measured = run.steps()
        self.steps = np.array(measured if steps is None else [s for s in measured if s in set(steps)], dtype=int)
        self._made: dict[str, list[Trajectory]] = {}  # series of in-context learning, by name
        self._ranked: dict[str, list[int]] = {}  # heads, by series
        self.left_out: list[str] = []  # head series without a head that has enough events
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
    def series(self) -> list[Trajectory]:
        """Every series that has a value, head series first."""
        (found,) = _built([self], lambda spec: True, few=True)
        return found

    @cached_property
    def icl(self) -> list[Trajectory]:
        """Every series of in-context learning that has a value; families last."""
        (found,) = _built([self], lambda spec: spec.kind == "icl")
        return found

    @property
    def headline_and_members(self) -> list[Trajectory]:
        """The headline series and the members of headline families."""
        return _headline_and_members(self.series)

    def headline_under(self, options: Sequence[EmergenceConfig]) -> list[list[Trajectory]]:
        """The headline series and the members of headline families under each of these options."""
        found = _built([self.with_options(one) for one in options], lambda spec: spec.headline)
        return [_headline_and_members(series) for series in found]

    def with_options(self, options: EmergenceConfig) -> "Trajectories":
        """The same run with other options; what was read from it is shared."""
        found = copy.copy(self)
        found.options, found.left_out, found._ranked = options, [], {}
        for name in ("series", "icl"):
            found.__dict__.pop(name, None)
        found.head_sums = {name: sums.with_fewest(options.min_events) for name, sums in self.head_sums.items()}
        return found

    def _all_icl(self, wanted: Callable[[Series], bool]) -> list[Trajectory]:
        return [
            trajectory
            for score, by_name in self.described.items()
            for spec in by_name.values()
            if spec.kind == "icl" and wanted(spec)
            for trajectory in self._icl_of(score, spec)
        ]

    def _families_of(self, found: Sequence[Trajectory]) -> list[Trajectory]:
        return [
            family(name, [t for t in found if t.name in members], headline)
            for (name, headline), members in self._families.items()
            if any(t.name in members for t in found)
        ]

    def _icl_of(self, score: str, spec: Series) -> list[Trajectory]:
        """What one description of in-context learning gives; of all options, only delta matters to it."""
        if spec.name not in self._made:
            self._made[spec.name] = self._of(score, spec)
        return [replace(t, delta=self.delta(spec)) for t in self._made[spec.name]]

    @cached_property
    def _families(self) -> dict[tuple[str, bool], list[str]]:
        """The series of each family, by its name and whether it is a headline."""
        found: dict[tuple[str, bool], list[str]] = {}
        for by_name in self.described.values():
            for spec in by_name.values():
                if spec.family is not None:
                    found.setdefault((spec.family, spec.headline), []).append(spec.name)
        return found

    @cached_property
    def effects(self) -> list[Trajectory]:
        """What taking heads out does, over training, at the checkpoints where it was measured: NaN at the others."""
        return [
            trajectory
            for score, by_name in self.described.items()
            for spec in by_name.values()
            if spec.kind == "effects"
            for trajectory in self._of(score, spec)
        ]

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

    @property
    def headline(self) -> list[Trajectory]:
        """The few series that answer the question."""
        return [s for s in self.series if s.headline]

    @cached_property
    def head_sums(self) -> dict[str, HeadSums]:
        """Sums of every head, by series name; without the series that no checkpoint has."""
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
                s.name: HeadSums(s, table, documents[s.name] or dict.fromkeys(listed, 0), chosen_on, self.steps,
                                 self.options.min_events)
                for s in mine
            }  # fmt: skip
        return {s.name: found[s.name] for s in specs}

    def head_maps(
        self, wanted: Sequence[HeadMap], steps: Sequence[int], min_events: int | None = None
    ) -> dict[str, np.ndarray]:
        """Maps by name, (C, H), at some of the chosen steps.

        NaN where a head has no value, or fewer than `min_events` events.
        """
        fewest = self.options.min_events if min_events is None else min_events
        found: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(m.table for m in wanted):
            score, maps, there = self.tables[name], [m for m in wanted if m.table == name], {*self.steps_with(name)}
            columns, shape = sorted({c for m in maps for c in m.columns()}), self.shape(score)
            found |= {m.name: np.full((len(steps), shape[0] * shape[1]), np.nan) for m in maps}
            for c, step in enumerate(steps):
                file = self.run.scores[score].table_file(step, name)
                table = self.run.part(file, columns) if step in there else None
                for m in maps if table is not None else ():
                    found[m.name][c] = mapped(table, m, shape, fewest)
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

    def _rows(self, score: str, spec: Series) -> pd.DataFrame | None:
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

    @cached_property
    def _read(self) -> dict[tuple[str, str], pd.DataFrame | None]:
        return {}

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

    def _of(self, score: str, spec: Series) -> list[Trajectory]:
        """The trajectory of one description of in-context learning, none without values."""
        rows = self._rows(score, spec)
        if rows is None or rows.empty:
            return []
        document_R, documents = pd.factorize(rows["document"], sort=True)
        shape = len(documents), len(self.steps)
        place_R = document_R * shape[1] + np.searchsorted(self.steps, rows["step"])
        there_DC = np.bincount(place_R, minlength=math.prod(shape)).reshape(shape) > 0

        def of(column: np.ndarray) -> np.ndarray:
            """Summed by document and checkpoint, (D, C); NaN where there is no row."""
            sum_DC = np.bincount(place_R, np.where(np.isnan(column), 0, column), math.prod(shape)).reshape(shape)
            return np.where(there_DC, sum_DC, np.nan)

        value_R = rows[spec.value].to_numpy(dtype=float)
        total_DC = of(value_R)
        count_DC = of(~np.isnan(value_R) if spec.count is None else rows[spec.count].to_numpy(dtype=float))
        found = self._trajectory(spec, [str(d) for d in documents], total_DC, count_DC)
        for null, _, _ in spec.nulls.values():  # on the same documents
            null_DC = of(rows[null].to_numpy(dtype=float))
            null_C = null_DC.sum(0) / count_DC.sum(0)
            found = replace(found, excess_DC=total_DC - null_DC, null_C=null_C, heads_of=spec.heads_of)
        return [found]

    def _top(self, part: Trajectory) -> Trajectory:
        """The mean over the few best heads, as a series of its own."""
        few = self.options.few_heads
        return replace(part, name=f"{part.name}/top_{few}", label=f"{part.label}, top {few} heads", headline=False)

    def _mean_of(self, sums: HeadSums, heads: Sequence[int], mean: MeanOverHeads) -> Trajectory:
        """The trajectory of these heads on the half of the documents that they were not chosen on."""
        spec = sums.spec
        found = self._trajectory(spec, sums.followed, mean.contribution_DC, np.ones_like(mean.contribution_DC))
        return replace(
            found,
            excess_DC=found.excess_DC if mean.excess_DC is None else mean.excess_DC,
            null_C=None if mean.excess_DC is None else found.value_C - mean.excess_DC.mean(0),
            heads=tuple(label(*sums.heads[h]) for h in heads),
            events_C=mean.events_C if spec.count else None,
        )

    def _trajectory(
        self, spec: Series, documents: Sequence[str], numerator_DC: np.ndarray, denominator_DC: np.ndarray
    ) -> Trajectory:
        return Trajectory(
            name=spec.name,
            kind=spec.kind,
            pool=spec.pool,
            documents=tuple(documents),
            numerator_DC=numerator_DC,
            denominator_DC=denominator_DC,
            sign=spec.sign,
            delta=self.delta(spec),
            excess_DC=None if spec.chance is None else numerator_DC - spec.chance * denominator_DC,
            label=spec.label,
            unit=spec.unit,
            chance=spec.chance,
            heads_of=spec.heads_of,
            share=spec.share,
            headline=spec.headline and spec.family is None,
        )

    def delta(self, spec: Series) -> float:
        """The smallest rise that counts: the score's own, unless `emergence.delta` has another for that score."""
        (score,) = (score for score, by_name in self.described.items() if spec.name in by_name)
        return float((self.options.delta or {}).get(score, spec.smallest_rise))

    def count(self, sums: HeadSums) -> int:
        """How many heads a head series averages over."""
        return max(1, round(self.options.top_heads * len(sums.heads)))

    def ranked(self, name: str) -> list[int]:
        """Indices of the heads that have enough events on the choosing half, the best first."""
        if name not in self._ranked:
            sums = self.head_sums[name]
            able_H, best_H = sums.supported(half=True), np.fmax.reduce(sums.half_HC(), axis=1)
            best_H = np.where(able_H, np.nan_to_num(best_H, nan=-np.inf), -np.inf)
            self._ranked[name] = [int(h) for h in np.argsort(-best_H, kind="stable") if able_H[h]]
        return self._ranked[name]

    def chosen(self, name: str) -> list[int]:
        """Indices of the heads that the series averages over."""
        return self.ranked(name)[: self.count(self.head_sums[name])]


def _built(
    variants: Sequence[Trajectories], wanted: Callable[[Series], bool], few: bool = False
) -> list[list[Trajectory]]:
    """The wanted series of one run under each variant's options; with `few`, also of the best heads of the headline."""
    found = []
    for data, of_heads in zip(variants, _means(variants, wanted, few), strict=True):
        mine = [*of_heads, *data._all_icl(wanted)]
        found.append([*mine, *data._families_of(mine)])
    return found


def _means(variants: Sequence[Trajectories], wanted: Callable[[Series], bool], few: bool) -> list[list[Trajectory]]:
    """Of head series, the mean over heads of each head's own value, for those that most exceed every null.

    Heads are chosen on one half of the documents, each at its best checkpoint, and followed on the other. No
    trajectory when no head has enough events; `left_out` then names the series.
    """
    by_table: dict[HeadTable, list[tuple[int, HeadSums, list[int]]]] = {}
    for n, data in enumerate(variants):
        for name, sums in data.head_sums.items():
            spec = sums.spec
            if not wanted(spec):
                continue
            chosen = data.chosen(spec.heads_of or name)
            if not chosen:
                data.left_out += [name] if spec.heads_of is None else []
                continue
            together = by_table.setdefault(sums.table, [])
            together.append((n, sums, chosen))
            if few and spec.headline and len(chosen) > data.options.few_heads:
                together.append((n, sums, chosen[: data.options.few_heads]))
    found: list[dict[str, list[Trajectory]]] = [{name: [] for name in data.head_sums} for data in variants]
    for table, together in by_table.items():
        means = means_over_heads(table, [(sums, heads) for _, sums, heads in together], len(variants[0].steps))
        for (n, sums, heads), mean in zip(together, means, strict=True):
            found[n][sums.spec.name].append(variants[n]._mean_of(sums, heads, mean))
    return [
        [t for parts in of_one.values() for t in (*parts[:1], *map(data._top, parts[1:]))]
        for data, of_one in zip(variants, found, strict=True)
    ]


def _headline_and_members(series: Sequence[Trajectory]) -> list[Trajectory]:
    inner = {name for t in series if t.headline for name in t.members}
    return [t for t in series if t.headline or t.name in inner]
