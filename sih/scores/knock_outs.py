"""Knock-outs: what in-context learning loses when heads are taken out, exactly, against matched control sets.

Groups are the best heads of head series, chosen at the measured checkpoint and at the last one, on documents that no
effect is measured on. What they put out is replaced (`operations`) at all positions from 1 on:

| operation | by |
|---|---|
| mean | the head's mean over other texts: an upper bound on what deleting it costs, since a constant is injected |
| zero | nothing |
| resampled | what it puts out at the same position of another text |
| patterns | its mean, while all attention patterns stay as they were: the value path alone |

An effect is the outcome with the heads taken out minus the outcome without: see outcomes.py for their signs.

Letters: B texts, L layers, H heads, K d_head, N outcomes, S sets of heads, D documents.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from sih.config import EffectsConfig
from sih.errors import CheckpointError, SihError
from sih.models import replacing
from sih.models.replacing import Head, Instead
from sih.scores import Drawn, Effects, Given, Ranking, Series, outcomes, plain
from sih.scores.head_sets import HeadSet, Sizes, rank_p, sets_of
from sih.scores.outcomes import LESS_IS_MORE, Inputs, Reading
from sih.scores.tables import paired_interval

if TYPE_CHECKING:
    from sih.models.model import Model

OPERATIONS = ("mean", "zero", "resampled", "patterns")
_SHOWN = ("gain", "repeated_loss", "margin", "accuracy")  # those with a series
_SERIES = "without "  # their names begin with this


def knocked_out(
    model: "Model",
    reading: Reading,
    sets: Sequence[tuple[Head, ...]],
    operation: str,
    mean_LHK: torch.Tensor,
    reference_BT: torch.Tensor,
    batch_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Every text's outcomes with nothing taken out, float64 (N, B), and with each set taken out, (S, N, B).

    A pass begins at the first layer with a head of the set, from the clean model's stream there.

    Raises:
        CheckpointError: an outcome that is not finite, or a set that changes none at all.
    """
    clean, changed = [], []
    first_S = [min(layer for layer, _ in heads) for heads in sets]
    with torch.inference_mode():
        for batch in reading.batches(batch_tokens):
            with replacing.streams_kept(model, first_S) as streams:
                clean.append(outcomes.read(model, batch, model.hidden(batch.ids_BT)).cpu())
            with _operating(model, operation, batch, mean_LHK, reference_BT) as instead:
                of_batch = []
                for heads, first in zip(sets, first_S, strict=True):
                    with replacing.begun_at(model, first, streams[first]), replacing.replaced(model, heads, instead):
                        of_batch.append(outcomes.read(model, batch, model.hidden(batch.ids_BT)))
            changed.append(torch.stack(of_batch).cpu() if sets else torch.empty(0, len(batch.names), len(batch.ids_BT)))
    clean_NB, changed_SNB = torch.cat(clean, 1).double().numpy(), torch.cat(changed, 2).double().numpy()
    for heads, changed_NB in zip(sets, changed_SNB, strict=True):
        if (changed_NB == clean_NB).all():
            raise CheckpointError(
                f"taking out {_label(heads)} changes no scored logit ({', '.join(reading.names)}): "
                "the heads put out what replaces them, or the replacement did not reach the model"
            )
    return clean_NB, changed_SNB


@contextmanager
def _operating(
    model: "Model", operation: str, batch: Reading, mean_LHK: torch.Tensor, reference_BT: torch.Tensor
) -> Iterator[Instead]:
    """What heads put out instead, for a batch."""
    if operation == "resampled":
        texts, width = batch.ids_BT.shape
        if width > reference_BT.shape[1]:
            raise SihError(
                f"operation resampled: texts of {width} tokens need others as long; these have {reference_BT.shape[1]}"
            )
        yield replacing.outputs(model, reference_BT[torch.arange(texts) % len(reference_BT), :width])
    elif operation == "patterns":
        with replacing.patterns_forced(model, replacing.patterns(model, batch.ids_BT)):
            yield mean_LHK
    else:
        yield mean_LHK if operation == "mean" else torch.zeros_like(mean_LHK)


@dataclass
class KnockOuts:
    """The score; conf/scores/knock_outs.yaml and conf/_icl.yaml have the meanings and defaults of its options."""

    effects: EffectsConfig
    groups: dict[str, list[str]]
    share: float
    fewest: int
    few: int
    leading: float
    controls: int
    operations: list[str]
    smallest_rise: float

    version = 2
    shown = ("smallest_rise",)
    intervenes = True
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "knock_out_sets": ("group", "chosen", "kind", "operation", "outcome", "heads", "size", "n", "clean",
                           "clean_low", "clean_high", "chance", "effect", "low", "high", "controls", "controls_low",
                           "controls_high", "beyond", "beyond_low", "beyond_high", "rank_p", "n_controls",
                           "matched", "singles"),
        "knock_out_controls": ("group", "chosen", "kind", "heads", "outcome", "effect"),
        "knock_out_documents": ("group", "chosen", "kind", "operation", "outcome", "document", "clean", "effect",
                                "controls"),
        "knock_out_groups": ("group", "chosen", "heads", "reason"),
    }  # fmt: skip

    def __post_init__(self) -> None:
        if unknown := [o for o in self.operations if o not in OPERATIONS] or not self.operations:
            raise SihError(
                f"scores.knock_outs.operations={self.operations}: {unknown}; expected {', '.join(OPERATIONS)}"
            )
        if min(self.fewest, self.few, self.controls) < 1 or not 0 <= self.share <= 1:
            raise SihError("scores.knock_outs: expected fewest, few and controls of at least 1, and share of 0 to 1")

    def files(self) -> dict[str, Path]:
        """The file of texts, if there is one."""
        return outcomes.files(self.effects)

    def measured(self) -> dict[str, Any]:
        """All options but the file's path and how results are shown."""
        own = {
            n: plain(getattr(self, n))
            for n in ("groups", "share", "fewest", "few", "leading", "controls", "operations")
        }
        return own | {"effects": outcomes.measured(self.effects, plain(self.effects))}

    def follows(self) -> dict[str, list[str]]:
        """The head series whose heads are taken out, by score."""
        return self.groups

    def draw(self, given: Given) -> Drawn:
        """Texts, sequences and episodes; half of the texts are the reference."""
        inputs, text = outcomes.draw(self.effects, given)
        rises = {series.name: series.smallest_rise for series in given.followed}
        facts = {
            "groups": {series.name: series.label for series in given.followed},
            "outcomes": inputs.names,
            "chance": outcomes.chances(inputs, given.vocab_size),
        }
        return Drawn(
            (inputs, rises, facts["chance"], given.seed),
            files={"effect_inputs.jsonl": text},
            facts=facts,
            told=f"knock-outs of {len(rises)} groups of heads",
        )

    def measure(
        self, model: "Model", drawn: tuple, batch_tokens: int, rankings: Mapping[str, Ranking]
    ) -> dict[str, pa.Table]:
        """Effects of every set and control set, by document for groups, on average for all.

        Raises:
            CheckpointError: an outcome that is not finite, or a set that changes none at all.
        """
        inputs, rises, chance, seed = drawn
        sizes = Sizes(self.share, self.fewest, self.few, self.leading, self.controls)
        sets, empty = sets_of(rankings, rises, sizes, seed) if rankings else ([], [])
        mean_LHK = replacing.mean_outputs(model, inputs.reference_BT, batch_tokens)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.tables}
        singles: dict[tuple, float] = {}
        for n, operation in enumerate(self.operations):
            mine = [s for s in sets if n == 0 or s.kind == "group"]
            effects = self._effects(model, inputs, mine, operation, mean_LHK, batch_tokens, with_controls=n == 0)
            for head_set in sorted(mine, key=lambda s: s.kind != "single"):
                for outcome, (documents, clean_D, effect_SD) in effects.items():
                    found = _row(head_set, operation, outcome, clean_D, effect_SD, chance[outcome], seed, n == 0)
                    if head_set.kind == "single":
                        singles[head_set.group, head_set.chosen, operation, outcome, head_set.heads[0]] = found[
                            "effect"
                        ]
                    found["singles"] = sum(
                        singles.get((head_set.group, head_set.chosen, operation, outcome, h), np.nan)
                        for h in head_set.heads
                    )
                    rows["knock_out_sets"].append(found)
                    if n == 0:
                        rows["knock_out_controls"] += _control_rows(head_set, outcome, effect_SD)
                    if head_set.kind in ("group", "apart"):
                        rows["knock_out_documents"] += _document_rows(
                            head_set, operation, outcome, documents, clean_D, effect_SD, n == 0
                        )
        rows["knock_out_groups"] = [
            {"group": s.group, "chosen": s.chosen, "heads": _label(s.heads), "reason": ""}
            for s in sets
            if s.kind == "group"
        ] + [
            {"group": group, "chosen": chosen, "heads": "", "reason": "no head above chance or its largest null"}
            for group, chosen in empty
        ]
        return {name: _table(rows[name], columns) for name, columns in self.tables.items()}

    def _effects(
        self,
        model: "Model",
        inputs: Inputs,
        sets: Sequence[HeadSet],
        operation: str,
        mean_LHK: torch.Tensor,
        batch_tokens: int,
        with_controls: bool,
    ) -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[tuple[Head, ...], np.ndarray]]]:
        """By outcome: its documents, the clean values (D,), and the effect on each (D,) by set, in the heads' order.

        Sets of the same heads are measured once.
        """
        wanted = [s.heads for s in sets] + [c for s in sets if with_controls for c in s.controls]
        different = list({tuple(sorted(heads)): None for heads in wanted})
        clean: dict[str, np.ndarray] = {}
        changed: dict[str, np.ndarray] = {}
        documents: dict[str, tuple[str, ...]] = {}
        for reading in inputs.readings:
            clean_NB, changed_SNB = knocked_out(
                model, reading, different, operation, mean_LHK, inputs.reference_BT, batch_tokens
            )
            clean |= dict(zip(reading.names, clean_NB, strict=True))
            changed |= {name: changed_SNB[:, n] for n, name in enumerate(reading.names)}
            documents |= dict.fromkeys(reading.names, reading.documents)
        documents |= {name: documents[of] for name, (of, _) in outcomes.DIFFERENCES.items()}
        clean, changed = outcomes.with_differences(clean), outcomes.with_differences(changed)
        return {
            name: (documents[name], clean[name], dict(zip(different, changed[name] - clean[name], strict=True)))
            for name in clean
        }

    def effects_kept(self, facts: Mapping[str, Any]) -> Effects:
        """Where the effects are, for the figures and the answer."""
        return Effects(
            sets="knock_out_sets",
            controls="knock_out_controls",
            operation=self.operations[0],
            groups=dict(facts["groups"]),
            outcomes={name: outcomes.labelled(name) for name in facts["outcomes"]},
            less_is_more=list(LESS_IS_MORE),
            main=[name for name in ("gain", "margin") if name in facts["outcomes"]],
            shown=_shown(facts),
            series=_SERIES,
        )

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """What the groups chosen at the last checkpoint do to the main outcomes; their controls are the null."""
        return [
            Series(
                name=f"{_SERIES}{group}/{outcome}",
                label=f"{outcomes.labelled(outcome)} without {label}",
                kind="effects",
                table="knock_out_documents",
                value="effect",
                where={"group": [group], "chosen": ["last"], "kind": ["group"], "operation": self.operations[:1],
                       "outcome": [outcome]},
                unit="share of answers" if outcome.startswith("accuracy") else "nats",
                pool=outcomes.pool_of(outcome),
                sign=1 if outcome in LESS_IS_MORE else -1,
                smallest_rise=self.smallest_rise,
                nulls={"controls": ("controls", "effect", "clean")},
                heads_of=group,
                headline=outcome in ("gain", "margin"),
            )
            for group, label in facts.get("groups", {}).items()
            for outcome in _shown(facts)
        ]  # fmt: skip


def _shown(facts: Mapping[str, Any]) -> list[str]:
    """The outcomes that have a series."""
    return [o for o in facts.get("outcomes", ()) if o.removesuffix(outcomes.RELATIONS) in _SHOWN]


def _label(heads: Sequence[Head]) -> str:
    return " ".join(f"L{layer}H{head}" for layer, head in heads)


def _of(effect_SD: Mapping[tuple[Head, ...], np.ndarray], heads: Sequence[Head]) -> np.ndarray:
    return effect_SD[tuple(sorted(heads))]


def _row(
    head_set: HeadSet,
    operation: str,
    outcome: str,
    clean_D: np.ndarray,
    effect_SD: Mapping[tuple[Head, ...], np.ndarray],
    chance: float,
    seed: int,
    with_controls: bool,
) -> dict[str, Any]:
    """A set's effect on one outcome: on average, beyond its controls, and its rank among them."""
    effect_D = _of(effect_SD, head_set.heads)
    controls_CD = [_of(effect_SD, heads) for heads in head_set.controls] if with_controls else []
    worse = 1 if outcome in LESS_IS_MORE else -1
    low, high = paired_interval(effect_D, seed)
    clean_low, clean_high = paired_interval(clean_D, seed)
    found = {
        "group": head_set.group, "chosen": head_set.chosen, "kind": head_set.kind, "operation": operation,
        "outcome": outcome, "heads": _label(head_set.heads), "size": len(head_set.heads), "n": len(effect_D),
        "clean": clean_D.mean(), "clean_low": clean_low, "clean_high": clean_high, "chance": chance,
        "effect": effect_D.mean(), "low": low, "high": high, "n_controls": len(controls_CD),
        "matched": head_set.matched,
    }  # fmt: skip
    empty = dict.fromkeys(("controls", "controls_low", "controls_high", "beyond", "beyond_low", "beyond_high"), np.nan)
    if not controls_CD:
        return found | empty | {"rank_p": np.nan}
    mean_C, beyond_D = [c.mean() for c in controls_CD], effect_D - np.mean(controls_CD, axis=0)
    beyond_low, beyond_high = paired_interval(beyond_D, seed)
    return found | {
        "controls": np.mean(mean_C), "controls_low": min(mean_C), "controls_high": max(mean_C),
        "beyond": beyond_D.mean(), "beyond_low": beyond_low, "beyond_high": beyond_high,
        "rank_p": rank_p(worse * effect_D.mean(), [worse * c for c in mean_C]),
    }  # fmt: skip


def _control_rows(
    head_set: HeadSet, outcome: str, effect_SD: Mapping[tuple[Head, ...], np.ndarray]
) -> list[dict[str, Any]]:
    common = {"group": head_set.group, "chosen": head_set.chosen, "kind": head_set.kind, "outcome": outcome}
    return [common | {"heads": _label(c), "effect": _of(effect_SD, c).mean()} for c in head_set.controls]


def _document_rows(
    head_set: HeadSet,
    operation: str,
    outcome: str,
    documents: Sequence[str],
    clean_D: np.ndarray,
    effect_SD: Mapping[tuple[Head, ...], np.ndarray],
    with_controls: bool,
) -> list[dict[str, Any]]:
    controls = [_of(effect_SD, c) for c in head_set.controls] if with_controls else []
    controls_D = np.mean(controls, axis=0) if controls else np.full(len(clean_D), np.nan)
    common = {"group": head_set.group, "chosen": head_set.chosen, "kind": head_set.kind, "operation": operation,
              "outcome": outcome}  # fmt: skip
    return [
        common | {"document": document, "clean": clean, "effect": effect, "controls": control}
        for document, clean, effect, control in zip(
            documents, clean_D, _of(effect_SD, head_set.heads), controls_D, strict=True
        )
    ]


_WORDS = ("group", "chosen", "kind", "operation", "outcome", "document", "heads", "matched", "reason")
_COUNTS = ("size", "n", "n_controls")


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pa.Table:
    """The rows, in types that take little space and are the same where there are none."""
    words = pa.dictionary(pa.int32(), pa.string())
    types = {c: words if c in _WORDS else pa.int32() if c in _COUNTS else pa.float32() for c in columns}
    return pa.table({c: pa.array([row[c] for row in rows], type=t) for c, t in types.items()})
