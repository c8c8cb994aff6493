"""The relation index of Ren et al., for every head: options, tables and series [Ren §3, Eq. 1-3].

The exact fast path is in events.py; this file makes tables of it. `tests/oracle.py` has the loop over the vocabulary.

Letters: G groups (document, source, relation, direction), R pooled relations, L layers, H heads, S sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sih.config import RelationsConfig
from sih.errors import SihError
from sih.scores import Drawn, Given, HeadMap, Series, events, layout, plain
from sih.texts import sources
from sih.texts.relations import Example, Exclusions
from sih.texts.written import csv_text, jsonl

if TYPE_CHECKING:
    from sih.models.model import Model


_PAIRED = ("scored", "sum", "object_sum")  # of a null, see events.sums
# Of a null: its mean, the index minus the null at the events that have both, and their count.
_NULL_COLUMNS = tuple(f"{null}{what}" for null in layout.NULLS for what in ("", "_difference", "_scored"))

_DOCUMENT_COLUMNS = tuple(
    f"{events.prefix(variant)}{part}"
    for variant in events.VARIANTS
    for part in ("argmax_scored", "argmax_sum", *(f"{null}_{part}" for null in layout.NULLS for part in _PAIRED))
)


@dataclass
class Inputs:
    """The drawn examples, laid out in batches once for each size of pass."""

    examples: list[Example]
    seed: int

    def plan(self, batch_tokens: int) -> layout.Plan:
        """The layout for passes of `batch_tokens`; kept, since it is the same at every checkpoint."""
        if batch_tokens not in self._plans:
            self._plans[batch_tokens] = layout.plan(self.examples, self.seed, batch_tokens)
        return self._plans[batch_tokens]

    @cached_property
    def _plans(self) -> dict[int, layout.Plan]:
        return {}


@dataclass
class RelationIndex:
    """The score; conf/scores/ and conf/relations/ have the meanings and defaults of its options."""

    texts: RelationsConfig
    tau: float
    more_taus: list[float]
    smallest_rise: float

    version = 3
    shown = ("smallest_rise",)
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "relation_heads": ("layer", "head", "source", "relation", "direction", "opportunities", "self_opportunities",
                           "argmax_events", "argmax_scored", "relation_index", "relation_index_per_opportunity",
                           "ren_events", "ren_scored", "relation_index_ren", "own_events", "own_scored",
                           "relation_index_own", "strict_events", "strict_scored", "relation_index_strict",
                           *_NULL_COLUMNS),
        "relation_variants": ("layer", "head", "source", "relation", "direction", "variant", "gate", "tau", "events",
                              "scored", "undefined", "relation_index", *_NULL_COLUMNS),
        "relation_triplets": ("source", "relation", "direction", "layer", "head", "triplets", "triplets_null_random"),
        "relation_documents": ("document", "source", "relation", "direction", "layer", "head", *_DOCUMENT_COLUMNS),
    }  # fmt: skip

    def __post_init__(self) -> None:
        if min(self.taus) <= 1 or len(set(self.taus)) < len(self.taus):
            raise SihError(
                f"scores.relation_index.tau and more_taus are {self.taus}; strict gates need distinct ratios above 1"
            )
        sources.check(self.texts)

    @property
    def taus(self) -> list[float]:
        """All strict gates, the main one first."""
        return [self.tau, *self.more_taus]

    def files(self) -> dict[str, Path]:
        """The data files of the chosen sources."""
        return sources.files(self.texts)

    def measured(self) -> dict[str, Any]:
        """All options except the paths of files, without the sources that are not chosen."""
        texts = plain(self.texts)
        texts["agenda"].pop("path")
        texts["treebank"].pop("paths")
        custom = texts["custom"].pop("path")
        texts["custom"]["format"] = Path(custom).suffix if custom else None
        for source in ("generated", "agenda", "treebank", "custom"):
            if not texts[source]["enabled"]:
                del texts[source]
        return {"texts": texts, "tau": self.tau, "more_taus": list(self.more_taus)}

    def draw(self, given: Given) -> Drawn:
        """A balanced draw of triplets from the chosen sources, and how often each document can have an event."""
        dropped = Exclusions()
        examples = sources.draw(
            self.texts, given.files, given.tokenizer, given.held_out, given.seed, dropped, given.start
        )
        triplets = sum(len(e.triplets) for e in examples)
        relations: dict[str, set[str]] = {}
        for example in examples:
            relations.setdefault(example.source, set()).update(t.relation for t in example.triplets)
        return Drawn(
            Inputs(examples, given.seed),
            files={"examples.jsonl": _examples_text(examples), "opportunities.csv": _opportunities(examples)},
            facts={"relations": {source: sorted(found) for source, found in sorted(relations.items())}},
            told=f"{triplets} triplets in {len(examples)} texts",
            left_out=dropped.rows(),
        )

    def measure(self, model: "Model", inputs: Inputs, batch_tokens: int) -> dict[str, pa.Table]:
        """Index, counts and nulls of every head, relation and direction, and the sums of every document."""
        planned = inputs.plan(batch_tokens)
        measured = events.measure(model, planned, self.taus)
        names = events.sums(self.taus)
        groups = planned.groups
        pooled: dict[tuple[str, str, str], list[int]] = {}
        for i, group in enumerate(groups):
            pooled.setdefault((group.source, group.relation, group.direction), []).append(i)
        keys = sorted(pooled)
        total_RLHS = np.stack([measured.sums_GLHS[pooled[key]].sum(0) for key in keys])
        # Everything below is flat: a row for each relation and head.
        relation, layer, head = (x.ravel() for x in np.indices(total_RLHS.shape[:3]))
        index = {"layer": layer, "head": head}
        index |= {
            what: np.array(of_keys, dtype=object)[relation]
            for what, of_keys in zip(("source", "relation", "direction"), zip(*keys, strict=True), strict=True)
        }
        total = dict(zip(names, total_RLHS.reshape(len(relation), -1).T, strict=True))
        chances = np.array(
            [[sum(getattr(groups[i], name) for i in pooled[key]) for key in keys]
             for name in ("opportunities", "self_opportunities")]
        )[:, relation]  # fmt: skip
        return {
            "relation_heads": pa.table(index | _default_variant(total, *chances)),
            "relation_variants": _every_variant(index, total, self.taus),
            "relation_triplets": _best_heads(measured, planned, model.n_heads),
            "relation_documents": _by_document(measured.sums_GLHS, groups, names),
        }

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """Forward direction. Of a source, all relations together (the headline), then each relation by itself.

        The index of all relations together pools their events. The readings of x_j other than the current token's
        embedding follow the same heads as the headline.
        """
        found = []
        for source, relations in facts["relations"].items():
            where: dict[str, list[str]] = {"source": [source]}
            name, label = f"relation_index ({source})", f"relation index, {source}"
            found.append(self._series(name, label, where))
            for variant in events.VARIANTS[1:]:
                of_variant = self._series(f"relation_index_{variant} ({source})", f"{label}, {variant}", where, variant)
                found.append(replace(of_variant, heads_of=name, control=None))
            for relation in relations:
                of_relation = where | {"relation": [relation]}
                found.append(self._series(f"relation_index/{source}/{relation}", f"{relation} ({source})", of_relation))
        return found

    def _series(self, name: str, label: str, where: dict[str, list[str]], variant: str = events.VARIANTS[0]) -> Series:
        begin = events.prefix(variant)
        return Series(
            name=name,
            label=label,
            kind="heads",
            table="relation_documents",
            value=f"{begin}argmax_sum",
            count=f"{begin}argmax_scored",
            where={"direction": ["forward"], **where},
            unit="share",
            pool="texts",
            smallest_rise=self.smallest_rise,
            nulls={n: (f"{begin}{n}_sum", f"{begin}{n}_object_sum", f"{begin}{n}_scored") for n in layout.NULLS},
            control="null_random",
            opportunities="opportunities.csv",
            headline="relation" not in where and not begin,
        )

    def maps(self, facts: Mapping[str, Any]) -> Sequence[HeadMap]:
        """For each source's relations together: the index, also as Ren defines it and among the text's own tokens.

        Beside it, the index with closed gates counted as 0, and how often the gate opens.
        """
        found = []
        for source in facts["relations"]:
            where = {"direction": ["forward"], "source": [source]}
            name, label = f"relation_index ({source})", f"relation index, {source}"
            scored, all_ = "argmax_scored", "opportunities"
            table = "relation_heads"
            index = ("relation_index", scored)
            found += [
                HeadMap(f"{name} mean", label, table, index, scored, where, True, "mean", picture=True),
                HeadMap(f"{name} with self mean", f"{label}, with j = s", table, ("relation_index_ren", "ren_scored"),
                        "ren_scored", where, True, "mean"),
                HeadMap(f"{name} own tokens mean", f"{label}, own tokens", table, ("relation_index_own", "own_scored"),
                        "own_scored", where, True, "mean"),
                HeadMap(f"{name} per opportunity", f"{label}, per opportunity", table,
                        ("relation_index_per_opportunity", all_), all_, where, summary="mean"),
                HeadMap(f"{name} gate rate", f"{label}, gate rate", table, ("argmax_events",), all_, where,
                        summary="mean"),
                HeadMap(f"{name} own tokens gate rate", f"{label}, own tokens, gate rate", table, ("own_events",), all_,
                        where, summary="mean"),
            ]  # fmt: skip
        return found


def _examples_text(examples: Sequence[Example]) -> str:
    """One example a line: its tokens, and its triplets without the fields that are empty."""
    rows = (
        {
            "document": e.document,
            "source": e.source,
            "token_ids": e.token_ids,
            "triplets": [{k: v for k, v in vars(t).items() if v != ()} for t in e.triplets],
        }
        for e in examples
    )
    return jsonl(rows)


def _opportunities(examples: Sequence[Example]) -> str:
    """Opportunities by source, document and relation: positions from a triplet's later end on, but the subject's own.

    Every document of a source has a row for each of its relations, with 0 where it has none.
    """
    documents: dict[str, set[str]] = {}
    relations: dict[str, set[str]] = {}
    for example in examples:
        documents.setdefault(example.source, set()).add(example.document)
        relations.setdefault(example.source, set()).update(t.relation for t in example.triplets)
    counted = {(s, d, r): 0 for s in documents for d in documents[s] for r in relations[s]}
    for example in examples:
        for t in example.triplets:
            places = len(example.token_ids) - max(t.subject, t.object) - (t.subject > t.object)
            counted[example.source, example.document, t.relation] += places
    rows = [["forward", source, relation, document, n] for (source, document, relation), n in sorted(counted.items())]
    return csv_text(["direction", "source", "relation", "document", "opportunities"], rows)


def _default_variant(
    total: dict[str, np.ndarray], opportunities: np.ndarray, self_opportunities: np.ndarray
) -> dict[str, np.ndarray]:
    found = {"opportunities": opportunities, "self_opportunities": self_opportunities}
    for gate in ("argmax", "ren", "own", "strict"):
        found |= {f"{gate}_{what}": total[f"{gate}_{what}"].astype(np.int64) for what in ("events", "scored")}
        found[f"relation_index{'' if gate == 'argmax' else '_' + gate}"] = _mean(total, gate)
    found["relation_index_per_opportunity"] = _ratio(total["argmax_sum"], opportunities)
    return found | _nulls(total, "")


def _nulls(total: dict[str, np.ndarray], begin: str) -> dict[str, np.ndarray]:
    """The columns of _NULL_COLUMNS for one variant."""
    found: dict[str, np.ndarray] = {}
    for null in layout.NULLS:
        scored, of_null, of_object = (total[f"{begin}{null}_{part}"] for part in _PAIRED)
        found |= {
            null: _ratio(of_null, scored),
            f"{null}_difference": _ratio(of_object - of_null, scored),
            f"{null}_scored": scored.astype(np.int64),
        }
    return found


def _every_variant(index: dict[str, np.ndarray], total: dict[str, np.ndarray], taus: list[float]) -> pa.Table:
    """Every variant of x_j under every gate; nulls only with the argmax gate, whose events they use."""
    tau_of = dict(zip(events.gates(taus)[3:], taus, strict=True))
    rows = []
    for variant in events.VARIANTS:
        begin = events.prefix(variant)
        nulls = _nulls(total, begin)
        for gate in events.gates(taus):
            happened, scored = total[f"{gate}_events"], total[f"{begin}{gate}_scored"]
            row = {
                "variant": np.full(len(happened), variant, dtype=object),
                "gate": np.full(len(happened), gate.split("_")[0], dtype=object),
                "tau": np.full(len(happened), tau_of.get(gate, np.nan)),
                "events": happened.astype(np.int64),
                "scored": scored.astype(np.int64),
                "undefined": (happened - scored).astype(np.int64),
                "relation_index": _mean(total, f"{begin}{gate}"),
            }
            for name, of_null in nulls.items():
                shut = 0 if name.endswith("_scored") else np.nan
                row[name] = of_null if gate == "argmax" else np.full_like(of_null, shut)
            rows.append(row)
    repeated = {name: np.repeat(column, len(rows)) for name, column in index.items()}
    return pa.table(repeated | {name: np.stack([row[name] for row in rows], axis=1).ravel() for name in rows[0]})


def _best_heads(measured: events.Measured, plan: layout.Plan, n_heads: int) -> pa.Table:
    """How many triplets each head raises the most of all heads, and the same for a random seen token [Ren §5]."""
    keys = sorted(set(plan.triplets))
    place = {key: i for i, key in enumerate(keys)}
    key_R = np.array([place[triplet] for triplet in plan.triplets])
    pairs_R2 = [np.stack([key_R, best_R], axis=1) for best_R in (measured.best_R, measured.best_null_R)]
    found, row = np.unique(np.concatenate(pairs_R2), axis=0, return_inverse=True)
    counts = [np.bincount(part, minlength=len(found)) for part in np.split(row.ravel(), 2)]
    key, best = found.T
    columns = {what: [keys[k][i] for k in key] for i, what in enumerate(("source", "relation", "direction"))}
    where = {"layer": np.where(best < 0, -1, best // n_heads), "head": np.where(best < 0, -1, best % n_heads)}
    return pa.table(columns | where | {"triplets": counts[0], "triplets_null_random": counts[1]})


def _by_document(sums_GLHS: np.ndarray, groups: list[layout.Group], names: list[str]) -> pa.Table:
    """Sums of each document where a head had an event of the argmax gate, for resampling; other gates are left out.

    Shares are summed in float64 and kept in float32, those of the further variants in float16 (four digits; their
    exact totals are in relation_variants): 154 checkpoints of pythia-410m stay under 2 GB.
    """
    g, layer, head = np.nonzero(sums_GLHS[..., 0])
    directions = [x.direction for x in groups]
    # A reader of one direction can skip the other, and a head's rows lie together.
    order = np.lexsort((head, layer, np.array(directions)[g]))
    g, layer, head = g[order], layer[order], head[order]
    columns = {
        "document": _repeated([x.document for x in groups], g),
        "source": _repeated([x.source for x in groups], g),
        "relation": _repeated([x.relation for x in groups], g),
        "direction": _repeated(directions, g),
        "layer": pa.array(layer.astype(np.int16)),
        "head": pa.array(head.astype(np.int16)),
    }
    for name in _DOCUMENT_COLUMNS:
        of_variant = name.startswith(events.VARIANTS[1:])
        kind = (np.float16 if of_variant else np.float32) if name.endswith("_sum") else np.int32
        columns[name] = pa.array(sums_GLHS[g, layer, head, names.index(name)].astype(kind))
    return pa.table(columns)


def _mean(total: dict[str, np.ndarray], name: str) -> np.ndarray:
    return _ratio(total[f"{name}_sum"], total[f"{name}_scored"])


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count, NaN where nothing was counted."""
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _repeated(names: list[str], index: np.ndarray) -> pa.DictionaryArray:
    unique = list(dict.fromkeys(names))
    code = np.array([unique.index(n) for n in names], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(code[index]), pa.array(unique))
