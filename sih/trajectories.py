"""The store as arrays over training: what the tracker, the emergence statistics and the figures read.

Letters: D documents, C checkpoints.
"""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from sih.config import EmergenceConfig
from sih.errors import SihError
from sih.heads.relation_index import NULLS
from sih.store import Store

SUPPORT = 0.8  # share of the checkpoints at which a head must have enough events


@dataclass(frozen=True)
class Series:
    """One score over training, by document: value_C = sum of numerator over documents / sum of denominator.

    `sign` is +1 when more is a larger value, -1 for losses. `documents` of the same name in one `pool` are
    the same, so they are resampled with the same weights. Missing checkpoints are NaN.
    """

    name: str
    kind: str  # heads or icl
    score: str  # which delta applies: a key of emergence.delta
    pool: str
    documents: tuple[str, ...]
    numerator_DC: np.ndarray
    denominator_DC: np.ndarray
    sign: int
    unit: str
    chance: float | None = None
    heads: tuple[str, ...] = ()  # the heads it averages over, such as L1H0
    null_C: np.ndarray | None = None  # the largest of the nulls

    @property
    def value_C(self) -> np.ndarray:
        total = self.denominator_DC.sum(0)
        return np.divide(self.numerator_DC.sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)

    @property
    def floor_C(self) -> np.ndarray | None:
        """What the value must be above to mean anything: the largest null, or chance."""
        if self.null_C is not None:
            return self.null_C
        return None if self.chance is None else np.full(len(self.value_C), self.chance)


def label(layer: int, head: int) -> str:
    """A head's name: L3H5."""
    return f"L{layer}H{head}"


class Trajectories:
    """Every series of a store. Heads are chosen on one half of the documents and drawn on the other."""

    def __init__(self, store: Store, config: EmergenceConfig, headline_loss: str, seed: int) -> None:
        self.store, self.config, self.headline_loss, self.seed = store, config, headline_loss, seed
        self.steps = np.array(store.steps())
        self.left_out: list[str] = []  # relation series without a head that has enough events
        if len(self.steps) == 0:
            raise SihError(f"{store.root}: no measured checkpoints yet; run python -m sih.sweep first")

    @cached_property
    def relation_heads(self) -> pd.DataFrame:
        return self.store.tables("relation_heads")

    @cached_property
    def induction_heads(self) -> pd.DataFrame:
        return self.store.tables("induction_heads")

    @cached_property
    def icl(self) -> pd.DataFrame:
        return self.store.tables("icl")

    @cached_property
    def series(self) -> list[Series]:
        return [*self._prefix_matching(), *self._relation_index(), *self._icl_series()]

    @property
    def headline(self) -> list[Series]:
        """The few series that answer the question: one a score, and one a family of relations."""
        return [s for s in self.series if s.name.count("/") == 0 or s.name == f"loss_reduction/{self.headline_loss}"]

    def _count(self) -> int:
        """How many heads a head series averages over."""
        heads = len(self.induction_heads.drop_duplicates(["layer", "head"]))
        return max(1, round(self.config.top_heads * heads))

    def _half(self, documents: list[str], pool: str) -> set[str]:
        """The seeded half of the documents that heads are chosen on."""
        order = np.random.default_rng([self.seed, *f"half of {pool}".encode()]).permutation(len(documents))
        return {documents[i] for i in order[: len(documents) // 2]}

    def _prefix_matching(self) -> list[Series]:
        table = self.store.tables("induction_documents")
        table["document"] = table["sequence"].map("sequence-{:03d}".format)
        chosen_on = self._half(sorted(table["document"].unique()), "sequences")
        halves = table["document"].isin(chosen_on)
        by_head = table[halves].groupby(["layer", "head", "step"])["prefix_matching_score"].mean()
        peak = by_head.groupby(["layer", "head"]).max().sort_values(ascending=False, kind="stable")
        heads = list(peak.index[: self._count()])
        drawn = table[~halves].set_index(["layer", "head"]).loc[heads]
        wide = drawn.pivot_table("prefix_matching_score", "document", "step", aggfunc="mean").reindex(
            columns=self.steps
        )
        values_DC = wide.to_numpy(dtype=float)
        half = int(self.store.config["heads"]["length"])
        return [
            Series(
                name="prefix_matching",
                kind="heads",
                score="prefix_matching",
                pool="sequences",
                documents=tuple(wide.index),
                numerator_DC=values_DC,
                denominator_DC=np.ones_like(values_DC),
                sign=1,
                unit="mean attention",
                chance=float(np.mean(1 / np.arange(half + 1, 2 * half))),  # uniform attention
                heads=tuple(label(*h) for h in heads),
            )
        ]

    def _relation_index(self) -> list[Series]:
        table = self.store.tables("relation_documents")
        table = table[table["direction"] == "forward"]
        documents = {s: sorted(names) for s, names in self._documents_by_source().items()}
        chosen_on = self._half(sorted({d for names in documents.values() for d in names}), "texts")
        found = []
        for source, names in documents.items():
            rows = table[table["source"] == source]
            relations = sorted(rows["relation"].unique())
            for relation in [None, *relations]:
                part = rows if relation is None else rows[rows["relation"] == relation]
                name = f"relation_index ({source})" if relation is None else f"relation_index/{source}/{relation}"
                series = self._one_relation(name, part, chosen_on, names)
                if series is not None:
                    found.append(series)
        return found

    def _documents_by_source(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        with open(self.store.root / "examples.jsonl", encoding="utf-8") as lines:
            for line in lines:
                example = json.loads(line)
                found.setdefault(example["source"], set()).add(example["document"])
        return found

    def _one_relation(self, name: str, rows: pd.DataFrame, chosen_on: set[str], documents: list[str]) -> Series | None:
        """The heads whose index, on the choosing half, most exceeds every null at its best checkpoint.

        A head must have `min_events` scored events at `SUPPORT` of the checkpoints; None, and the name in
        `left_out`, when no head has.
        """
        halves = rows["document"].isin(chosen_on)
        sums = rows[halves].groupby(["layer", "head", "step"])[_SUMMED].sum()
        sums = sums[sums["argmax_scored"] >= self.config.min_events]
        seen = sums.groupby(["layer", "head"])["argmax_scored"].transform("size")
        sums = sums[seen >= SUPPORT * len(self.steps)]
        if sums.empty:
            self.left_out.append(name)
            return None
        excess = _index(sums) - self._larger_null(sums)
        best = excess.groupby(["layer", "head"]).max().sort_values(ascending=False, kind="stable")
        heads = list(best.index[: self._count()])
        drawn = rows[~halves].set_index(["layer", "head"])
        drawn = drawn[drawn.index.isin(heads)]
        index = [d for d in documents if d not in chosen_on]

        def wide(column: str) -> np.ndarray:
            table = drawn.pivot_table(column, "document", "step", aggfunc="sum", fill_value=0)
            return table.reindex(index=index, columns=self.steps, fill_value=0).to_numpy(dtype=float, copy=True)

        numerator_DC, denominator_DC = wide("argmax_sum"), wide("argmax_scored")
        few = denominator_DC.sum(0) < self.config.min_events
        numerator_DC[:, few] = np.nan
        totals = pd.DataFrame({column: wide(column).sum(0) for column in _SUMMED})
        null_C = self._larger_null(totals).to_numpy()
        return Series(
            name=name,
            kind="heads",
            score="relation_index",
            pool="texts",
            documents=tuple(index),
            numerator_DC=numerator_DC,
            denominator_DC=denominator_DC,
            sign=1,
            unit="share",
            heads=tuple(label(*h) for h in heads),
            null_C=np.where(few, np.nan, null_C),
        )

    def _larger_null(self, sums: pd.DataFrame) -> pd.Series:
        """The largest of the nulls that have `min_events` events; NaN where none has."""
        nulls = {
            null: (sums[f"{null}_sum"] / sums[f"{null}_scored"]).where(sums[f"{null}_scored"] >= self.config.min_events)
            for null in NULLS
        }
        return pd.DataFrame(nulls).max(axis=1)

    def _icl_series(self) -> list[Series]:
        table = self.store.tables("icl_documents")
        chance = self.icl.groupby(["score", "task"])["chance"].first()
        found = []
        loss = table[table["score"] == "loss_reduction"]
        for task in loss["task"].drop_duplicates():
            found.append(
                self._icl_one(f"loss_reduction/{task}", "loss_reduction", "texts", loss[loss["task"] == task], 0.0)
            )
        prompts = table[(table["score"] != "loss_reduction") & (table["shots"] >= self.config.shots_from)]
        justified = self._justification_tasks()
        for score in ("format_accuracy", "accuracy", "constrained_accuracy"):
            rows = prompts[prompts["score"] == score]
            for name, part in (
                (score, rows[~rows["task"].isin(justified)]),
                (f"{score} (relations)", rows[rows["task"].isin(justified)]),
            ):
                tasks = list(part["task"].drop_duplicates())
                if not tasks:
                    continue
                overall = float(chance[score][tasks].mean())
                found.append(self._icl_one(name, "accuracy", "prompts", part, overall))
                for task in tasks:
                    of_task = part[part["task"] == task]
                    one = self._icl_one(f"{score}/{task}", "accuracy", "prompts", of_task, float(chance[score, task]))
                    found.append(one)
        return found

    def _justification_tasks(self) -> set[str]:
        """Few-shot tasks that ask whether two words are related [Ren §4.3]; the others classify."""
        tasks = self.store.config.get("icl", {}).get("few_shot", {}).get("tasks", {})
        return {name for name, task in tasks.items() if task.get("pairs")}

    def _icl_one(self, name: str, score: str, pool: str, rows: pd.DataFrame, chance: float) -> Series:
        total = rows.pivot_table("value", "document", "step", aggfunc="sum").reindex(columns=self.steps)
        count = rows.pivot_table("value", "document", "step", aggfunc="count").reindex(columns=self.steps)
        loss = score == "loss_reduction"
        return Series(
            name=name,
            kind="icl",
            score=score,
            pool=pool,
            documents=tuple(total.index),
            numerator_DC=total.to_numpy(dtype=float),
            denominator_DC=count.to_numpy(dtype=float),
            sign=-1 if loss else 1,
            unit="nats" if loss else "share of prompts",
            chance=chance,
        )


_SUMMED = [
    "argmax_scored",
    "argmax_sum",
    *(f"{null}_{what}" for null in NULLS for what in ("scored", "sum")),
]


def _index(sums: pd.DataFrame) -> pd.Series:
    return sums["argmax_sum"] / sums["argmax_scored"]
