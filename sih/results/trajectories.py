"""A run's series over training: what the emergence statistics, the tracker and the figures read.

Letters: H heads, D documents, C checkpoints, R rows of a table.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd

from sih.config import EmergenceConfig
from sih.results.by_head import HeadTable
from sih.results.heads import HeadSums
from sih.results.means import MeanOverHeads, means_over_heads
from sih.results.run import Run
from sih.results.stored import Stored
from sih.results.trajectory import Trajectory, family, label
from sih.scores import HeadMap, Series


class Trajectories(Stored):
    """Every series of a run. Heads are chosen on one half of the documents and followed on the other."""

    def __init__(self, run: Run, options: EmergenceConfig, steps: Sequence[int] | None = None) -> None:
        super().__init__(run, steps)
        self.options = options
        self._made: dict[str, list[Trajectory]] = {}  # series of in-context learning, by name
        self._ranked: dict[str, list[int]] = {}  # heads, by series
        self.left_out: list[str] = []  # head series without a head that has enough events

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
    def head_sums(self) -> dict[str, HeadSums]:
        """Sums of every head, by series name; a head with fewer than `min_events` events has no value."""
        return {name: sums.with_fewest(self.options.min_events) for name, sums in self.all_sums.items()}

    def head_maps(
        self, wanted: Sequence[HeadMap], steps: Sequence[int], min_events: int | None = None
    ) -> dict[str, np.ndarray]:
        """Maps by name, (C, H), at some of the chosen steps; `min_events` is the option's unless it is given."""
        return super().head_maps(wanted, steps, self.options.min_events if min_events is None else min_events)

    @property
    def headline(self) -> list[Trajectory]:
        """The few series that answer the question."""
        return [s for s in self.series if s.headline]

    def _of(self, score: str, spec: Series) -> list[Trajectory]:
        """The trajectory of one description of in-context learning, none without values."""
        rows = self.rows(score, spec)
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
