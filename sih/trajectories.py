"""The store as arrays over training: what the tracker, the emergence statistics and the figures read.

Letters: D documents, C checkpoints.
"""

import json
from collections.abc import Sequence
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

    @cached_property
    def _prefix_documents(self) -> tuple[pd.DataFrame, list[tuple[int, int]]]:
        """Prefix matching of the sequences that heads are not chosen on; the heads, best first on the others."""
        table = self.store.tables("induction_documents")
        table["document"] = table["sequence"].map("sequence-{:03d}".format)
        chosen_on = self._half(sorted(table["document"].unique()), "sequences")
        halves = table["document"].isin(chosen_on)
        by_head = table[halves].groupby(["layer", "head", "step"])["prefix_matching_score"].mean()
        peak = by_head.groupby(["layer", "head"]).max().sort_values(ascending=False, kind="stable")
        return table[~halves].set_index(["layer", "head"]), list(peak.index)

    def _prefix_matching(self) -> list[Series]:
        table, ordered = self._prefix_documents
        heads = ordered[: self._count()]
        wide = self._by_sequence(table.loc[heads])
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

    def prefix_matching_of_others(self) -> np.ndarray:
        """Prefix matching of every head outside of the series, by sequence and checkpoint, (H, D, C)."""
        table, ordered = self._prefix_documents
        found = [self._by_sequence(table.loc[[head]]).to_numpy(dtype=float) for head in ordered[self._count() :]]
        return np.stack(found) if found else np.empty((0, 0, len(self.steps)))

    def _by_sequence(self, table: pd.DataFrame) -> pd.DataFrame:
        wide = table.pivot_table("prefix_matching_score", "document", "step", aggfunc="mean")
        return wide.reindex(columns=self.steps)

    @cached_property
    def relations(self) -> dict[str, "RelationSums"]:
        """Forward sums of every head by series name: all relations of a source together, then each."""
        table = self.store.tables("relation_documents", columns=_COLUMNS)
        table = table[table["direction"] == "forward"]
        examples = self._examples()
        found_heads = self.induction_heads[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"])
        heads = [(int(layer), int(head)) for layer, head in found_heads.to_numpy()]
        everywhere = sorted({d for found in examples.values() for d in found})
        chosen_on = self._half(everywhere, "texts")
        found = {}
        for source, opportunities in examples.items():
            rows = table[table["source"] == source]
            for relation in [None, *sorted(rows["relation"].unique())]:
                part = rows if relation is None else rows[rows["relation"] == relation]
                name = f"relation_index ({source})" if relation is None else f"relation_index/{source}/{relation}"
                counted = {
                    d: sum(n for r, n in of_document.items() if relation in (None, r))
                    for d, of_document in opportunities.items()
                }
                found[name] = RelationSums(part, heads, counted, chosen_on, self.steps)
        return found

    def _examples(self) -> dict[str, dict[str, dict[str, int]]]:
        """Forward opportunities by source, document and relation: positions from both ends of a triplet on."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        with open(self.store.root / "examples.jsonl", encoding="utf-8") as lines:
            for line in lines:
                example = json.loads(line)
                of_document = found.setdefault(example["source"], {}).setdefault(example["document"], {})
                for triplet in example["triplets"]:
                    first = max(triplet["subject"], triplet["object"])
                    relation = triplet["relation"]
                    of_document[relation] = of_document.get(relation, 0) + len(example["token_ids"]) - first
        return {source: dict(sorted(documents.items())) for source, documents in sorted(found.items())}

    def supported(self, sums: "RelationSums", name: str = "argmax", half: bool | None = None) -> np.ndarray:
        """Heads with `min_events` scored events at `SUPPORT` of the checkpoints, (H,) bool."""
        enough_HC = sums.total_HC(f"{name}_scored", half) >= self.config.min_events
        return enough_HC.mean(1) >= SUPPORT

    def index_HC(self, sums: "RelationSums", half: bool | None = None, name: str = "argmax") -> np.ndarray:
        """Index, or a null, of every head; NaN with fewer than `min_events` scored events."""
        scored_HC = sums.total_HC(f"{name}_scored", half)
        enough = scored_HC >= self.config.min_events
        return np.divide(
            sums.total_HC(f"{name}_sum", half), scored_HC, out=np.full(scored_HC.shape, np.nan), where=enough
        )

    def _relation_index(self) -> list[Series]:
        found = [self._one_relation(name, sums) for name, sums in self.relations.items()]
        return [series for series in found if series is not None]

    def _one_relation(self, name: str, sums: "RelationSums") -> Series | None:
        """The heads whose index, on the choosing half, most exceeds every null at its best checkpoint.

        None, and the name in `left_out`, when no head has enough events.
        """
        able = self.supported(sums, half=True)
        if not able.any():
            self.left_out.append(name)
            return None
        nulls = _largest([self.index_HC(sums, True, null) for null in NULLS])
        best_H = _largest(list((self.index_HC(sums, True) - nulls).T))
        best_H = np.where(able, np.nan_to_num(best_H, nan=-np.inf), -np.inf)
        order = np.argsort(-best_H, kind="stable")
        chosen = [int(h) for h in order[: self._count()] if able[h]]
        numerator_DC, denominator_DC = (
            sums.by_document_HDC(f"argmax_{part}", chosen, False).sum(0) for part in ("sum", "scored")
        )
        few = denominator_DC.sum(0) < self.config.min_events
        numerator_DC[:, few] = np.nan
        null_SC = []
        for null in NULLS:
            total, scored = (sums.total_HC(f"{null}_{part}", False)[chosen].sum(0) for part in ("sum", "scored"))
            enough = scored >= self.config.min_events
            null_SC.append(np.divide(total, scored, out=np.full(len(scored), np.nan), where=enough))
        null_C = _largest(null_SC)
        return Series(
            name=name,
            kind="heads",
            score="relation_index",
            pool="texts",
            documents=tuple(d for d, on in zip(sums.documents, sums.chosen_on_D, strict=True) if not on),
            numerator_DC=numerator_DC,
            denominator_DC=denominator_DC,
            sign=1,
            unit="share",
            heads=tuple(label(*sums.heads[h]) for h in chosen),
            null_C=np.where(few, np.nan, null_C),
        )

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


# Of relation_documents, which has many more.
_COLUMNS = [
    "document", "source", "relation", "direction", "layer", "head",
    *(f"{name}_{part}" for name in ("argmax", *NULLS) for part in ("scored", "sum")),
]  # fmt: skip


class RelationSums:
    """One relation's sums for every head, document and checkpoint, as they lie in the store.

    `heads` (H) are (layer, head); `documents` (D) in order, of which `chosen_on_D` marks the half that heads are
    chosen on; `opportunities_D` counts (triplet, position) in each.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        heads: list[tuple[int, int]],
        opportunities: dict[str, int],
        chosen_on: set[str],
        steps: np.ndarray,
    ) -> None:
        self.heads, self.documents, self.steps = heads, list(opportunities), steps
        self.opportunities_D = np.array(list(opportunities.values()))
        self.chosen_on_D = np.array([d in chosen_on for d in self.documents])
        width = max(h for _, h in heads) + 1
        codes = pd.Index([layer * width + head for layer, head in heads])
        self._rows = rows
        self._h_R = codes.get_indexer(rows["layer"].to_numpy(dtype=int) * width + rows["head"].to_numpy(dtype=int))
        self._d_R = pd.Index(self.documents).get_indexer(pd.Index(rows["document"]))
        self._c_R = pd.Index(steps).get_indexer(pd.Index(rows["step"]))

    def total_HC(self, column: str, half: bool | None = None) -> np.ndarray:
        """Sum over documents: of the choosing half (True), of the other (False), or of all (None)."""
        shape = (len(self.heads), len(self.steps))
        weights = self._rows[column].to_numpy(dtype=float)
        if half is not None:
            weights = weights * (self.chosen_on_D[self._d_R] == half)
        place = self._h_R * shape[1] + self._c_R
        return np.bincount(place, weights, shape[0] * shape[1]).reshape(shape)

    def by_document_HDC(self, column: str, heads: Sequence[int], half: bool) -> np.ndarray:
        """The column for these heads and the documents of one half, 0 where a head had no event."""
        kept_D = self.chosen_on_D == half
        place_D = np.cumsum(kept_D) - 1
        place_H = np.full(len(self.heads), -1)
        place_H[list(heads)] = np.arange(len(heads))
        mine = kept_D[self._d_R] & (place_H[self._h_R] >= 0)
        found = np.zeros((len(heads), int(kept_D.sum()), len(self.steps)))
        at = (place_H[self._h_R[mine]], place_D[self._d_R[mine]], self._c_R[mine])
        np.add.at(found, at, self._rows[column].to_numpy(dtype=float)[mine])
        return found


def _largest(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The elementwise maximum of what is not NaN; NaN where all are."""
    return np.fmax.reduce(list(arrays))
