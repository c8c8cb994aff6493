"""The outcomes that interventions are measured on: what in-context learning is worth, by document and episode.

| outcome | more in-context learning is |
|---|---|
| gain: what the far context gains, nats | more |
| reduction: late_loss - early_loss, nats; also both apart | less |
| repeated_loss: of random tokens that are said again, nats | less |
| margin: log-odds of the right label against the others, nats | more |
| format: of any label against all other tokens, nats | more |
| accuracy: the right label is the likeliest label | more |

The last three are of classification tasks; those with `(relations)` ask whether two words are related. Losses are those
of the late tokens of a text, and of as many at its beginning. Accuracy has no gradient.

Letters: B texts, T positions, P predictions that are read, D d_model, V vocabulary, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from sih.config import EffectsConfig
from sih.errors import CheckpointError, SihError
from sih.models.model import Model
from sih.scores import Given
from sih.texts import episodes, long
from sih.texts.datafiles import located
from sih.texts.episodes import Episode
from sih.texts.random_tokens import repeated
from sih.texts.written import jsonl

LOSSES = ("early_loss", "late_loss", "short_loss", "repeated_loss")
ANSWERED = ("margin", "format", "accuracy")
RELATIONS = " (relations)"
DIFFERENCES = {"gain": ("short_loss", "late_loss"), "reduction": ("late_loss", "early_loss")}
LABELS = {"gain": "context gain", "reduction": "loss reduction", "margin": "label margin", "format": "format log-odds"}
LESS_IS_MORE = ("reduction", "early_loss", "late_loss", "repeated_loss")
_AT_ONCE = 512  # predictions whose logits are held at a time


@dataclass(frozen=True)
class Reading:
    """Texts of about one length, padded on the right, and the predictions that outcomes are read from.

    names: the outcomes, of which each prediction counts for one (losses) or for all (answers).
    documents (B): each text's; row_P, position_P: where predictions are; outcome_P: an index into `names`.
    target_P: for losses, the id that is predicted.
    label_PC, gold_P: for answers, the labels' ids, -1 for a class that a task does not have, and the right class.
    """

    names: tuple[str, ...]
    documents: tuple[str, ...]
    ids_BT: torch.Tensor
    row_P: torch.Tensor
    position_P: torch.Tensor
    outcome_P: torch.Tensor | None = None
    target_P: torch.Tensor | None = None
    label_PC: torch.Tensor | None = None
    gold_P: torch.Tensor | None = None

    def batches(self, batch_tokens: int) -> list["Reading"]:
        """The same in parts of at most `batch_tokens` tokens, at least one text each."""
        size = max(1, batch_tokens // self.ids_BT.shape[1])
        return [self._rows(a, min(a + size, len(self.ids_BT))) for a in range(0, len(self.ids_BT), size)]

    def _rows(self, begin: int, end: int) -> "Reading":
        mine_P = (self.row_P >= begin) & (self.row_P < end)

        def of(x_P: torch.Tensor | None) -> torch.Tensor | None:
            return None if x_P is None else x_P[mine_P]

        return replace(
            self,
            documents=self.documents[begin:end],
            ids_BT=self.ids_BT[begin:end],
            row_P=self.row_P[mine_P] - begin,
            position_P=self.position_P[mine_P],
            outcome_P=of(self.outcome_P),
            target_P=of(self.target_P),
            label_PC=of(self.label_PC),
            gold_P=of(self.gold_P),
        )


def read(model: Model, reading: Reading, hidden_BTD: torch.Tensor) -> torch.Tensor:
    """Each text's mean of each outcome over its predictions, float32 (outcomes, B), on the device; differentiable.

    Raises:
        CheckpointError: a value that is not finite.
    """
    device, texts = hidden_BTD.device, len(reading.ids_BT)
    row_P = reading.row_P.to(device)
    hidden_PD = hidden_BTD[row_P, reading.position_P.to(device)]
    found = []
    for n, hidden in enumerate(hidden_PD.split(_AT_ONCE)):
        logits_PV, part = model.unembed(hidden), slice(n * _AT_ONCE, n * _AT_ONCE + len(hidden))
        if reading.target_P is not None:
            found.append(cross_entropy(logits_PV, reading.target_P[part].to(device), reduction="none")[None])
        else:
            assert reading.label_PC is not None
            assert reading.gold_P is not None
            found.append(answered(logits_PV, reading.label_PC[part].to(device), reading.gold_P[part].to(device)))
    value_NP = torch.cat(found, dim=1)
    if reading.outcome_P is not None:
        outcome_P = reading.outcome_P.to(device)
        mine_NP = outcome_P == torch.arange(len(reading.names), device=device)[:, None]
        value_NP = torch.where(mine_NP, value_NP, 0.0)
    else:
        mine_NP = torch.ones_like(value_NP, dtype=torch.bool)
    zero_NB = torch.zeros(len(reading.names), texts, device=device)
    total_NB, count_NB = zero_NB.index_add(1, row_P, value_NP), zero_NB.index_add(1, row_P, mine_NP.float())
    if not torch.isfinite(total_NB).all():
        raise CheckpointError(f"{' or '.join(reading.names)} is NaN or infinite")
    return total_NB / count_NB


def answered(logits_PV: torch.Tensor, label_PC: torch.Tensor, gold_P: torch.Tensor) -> torch.Tensor:
    """ANSWERED at each prediction, (3, P); labels of -1 do not count."""
    absent_PC = label_PC < 0
    labels_PC = torch.where(absent_PC, label_PC[:, :1], label_PC)
    logit_PC = logits_PV.gather(1, labels_PC).masked_fill(absent_PC, -torch.inf)
    right_P = logit_PC.gather(1, gold_P[:, None])[:, 0]
    margin_P = right_P - logit_PC.scatter(1, gold_P[:, None], -torch.inf).logsumexp(1)
    format_P = logit_PC.logsumexp(1) - logits_PV.scatter(1, labels_PC, -torch.inf).logsumexp(1)
    return torch.stack([margin_P, format_P, (logit_PC.argmax(1) == gold_P).float()])


@dataclass(frozen=True)
class Inputs:
    """What is drawn once: readings for whole outcomes, others for one backward pass each, and the reference texts.

    `reference_BT` are texts that no effect is measured on: for means, and for outputs of other texts.
    """

    readings: list[Reading]
    by_gradient: list[Reading]
    reference_BT: torch.Tensor

    @property
    def names(self) -> list[str]:
        """All outcomes, those that are differences first."""
        return [*DIFFERENCES, *dict.fromkeys(name for r in self.readings for name in r.names)]


def files(on: EffectsConfig) -> dict[str, Path]:
    """The file of texts, if they are not the embedded series' documents."""
    return {} if on.texts == long.HELD_OUT else {"effect_texts": located(long.WIKITEXT, on.texts)}


def measured(on: EffectsConfig, options: Mapping[str, object]) -> dict[str, object]:
    """Options that numbers depend on, given plain; of the texts' path, only the format."""
    kind = on.texts if on.texts in (None, long.HELD_OUT) else Path(on.texts).suffix
    return {**options, "texts": kind}


def draw(on: EffectsConfig, given: Given) -> tuple[Inputs, str]:
    """Texts, sequences and episodes, and their ids as a file's text.

    Half of the texts are measured on; the other half are the reference.

    Raises:
        SihError: no text is left for the reference, or the context is too short.
    """
    late_start, late_stop, _ = on.late
    if late_stop + 1 > given.context:
        raise SihError(
            f"icl.effects.late needs {late_stop + 1} tokens, but the model's context is {given.context}; "
            "name positions that fit, as conf/icl/generated.yaml does"
        )
    texts = long.chosen(
        on.texts, given.files.get("effect_texts"), lambda: given.held_out(on.skip + 2 * on.documents)[on.skip :]
    )
    pieces = long.cut(texts, given.tokenizer, late_stop + 1, 2 * on.documents, given.start)
    names = sorted({name for name, _ in pieces})
    order = np.random.default_rng([given.seed, *b"texts of effects"]).permutation(len(names))
    mine = {names[n] for n in order[: len(names) // 2]}
    reference = [ids for name, ids in pieces if name not in mine]
    if not mine or not reference:
        raise SihError(
            f"{len(names)} texts have {late_stop + 1} tokens: none is left for the means that outputs are replaced "
            "with; expected at least 2 (icl.effects.texts)"
        )
    kept = [(name, ids) for name, ids in pieces if name in mine]
    documents, ids_BT = tuple(name for name, _ in kept), torch.tensor([ids for _, ids in kept])
    width = late_stop - late_start
    late, early = range(late_start, late_stop), range(width)
    short_BS, short_read = long.short_texts(ids_BT, on.late, given.start)
    random_BT, half = repeated(
        given.n_ids, on.sequences, on.length, given.start, np.random.default_rng([given.seed, *b"random effects"])
    )
    sequences = tuple(f"sequence-{n:03d}" for n in range(on.sequences))
    again = range(random_BT.shape[1] - half, random_BT.shape[1] - 1)
    asked = _asked(on, given)
    shared = [
        losses(("short_loss",), documents, short_BS, [short_read]),
        losses(("repeated_loss",), sequences, torch.from_numpy(random_BT), [again]),
        *asked,
    ]
    # Only the late loss needs a backward pass through whole texts; a text's beginning is a short text of its own.
    apart = [
        losses(("late_loss",), documents, ids_BT, [late]),
        losses(("early_loss",), documents, ids_BT[:, : width + 1], [early]),
    ]
    whole = losses(("early_loss", "late_loss"), documents, ids_BT, [early, late])
    written = [
        *kept,
        *zip(sequences, random_BT.tolist(), strict=True),
        *((d, ids.tolist()) for r in asked for d, ids in zip(r.documents, r.ids_BT, strict=True)),
        *(("reference", ids) for ids in reference),
    ]
    return Inputs([whole, *shared], [*apart, *shared], torch.tensor(reference)), jsonl(
        {"document": document, "token_ids": ids} for document, ids in written
    )


def losses(
    names: tuple[str, ...], documents: tuple[str, ...], ids_BT: torch.Tensor, stretches: Sequence[range]
) -> Reading:
    """Losses of the same predictions in every text: a stretch for each name. Prediction t is of the id t + 1."""
    texts = len(ids_BT)
    position = torch.tensor([t for stretch in stretches for t in stretch])
    outcome = torch.tensor([n for n, stretch in enumerate(stretches) for _ in stretch])
    row_P, position_P = torch.arange(texts).repeat_interleave(len(position)), position.repeat(texts)
    target_P = ids_BT[row_P, position_P + 1]
    # What comes after the last prediction is read by none.
    return Reading(
        names, documents, ids_BT[:, : int(position.max()) + 1], row_P, position_P, outcome.repeat(texts), target_P
    )


def _asked(on: EffectsConfig, given: Given) -> list[Reading]:
    """Answers in episodes of classification tasks, and of tasks about relations, with enough examples before them."""
    config = replace(on.asking, episodes=on.episodes)
    asked, _ = episodes.build(config, given.tokenizer, given.context, given.seed + 1, given.start)
    kinds = {
        suffix: [e for e in asked if bool(config.tasks[e.task].pairs) == bool(suffix)] for suffix in ("", RELATIONS)
    }
    read = [_answers(found, config.shots_from, suffix) for suffix, found in kinds.items() if found]
    return [reading for reading in read if reading.documents]


def _answers(asked: list[Episode], shots_from: int, suffix: str) -> Reading:
    def shots_of(e: Episode) -> range:
        """With fewer examples than classes, the class asked for has not been shown."""
        return range(max(shots_from, len(e.label_token_ids)), len(e.asked))

    asked = sorted((e for e in asked if shots_of(e)), key=lambda e: len(e.token_ids))
    classes = max((len(e.label_token_ids) for e in asked), default=0)
    longest = max((len(e.token_ids) for e in asked), default=0)
    rows, positions, labels, gold = [], [], [], []
    for n, e in enumerate(asked):
        shots = shots_of(e)
        rows += [n] * len(shots)
        positions += [e.asked[s] for s in shots]
        gold += [e.gold[s] for s in shots]
        labels += [[*e.label_token_ids, *[-1] * (classes - len(e.label_token_ids))]] * len(shots)
    return Reading(
        names=tuple(name + suffix for name in ANSWERED),
        documents=tuple(f"{e.task}/episode-{e.number:03d}" for e in asked),
        ids_BT=torch.tensor([[*e.token_ids, *e.token_ids[-1:] * (longest - len(e.token_ids))] for e in asked]),
        row_P=torch.tensor(rows),
        position_P=torch.tensor(positions),
        label_PC=torch.tensor(labels),
        gold_P=torch.tensor(gold),
    )


def pool_of(name: str) -> str:
    """What an outcome's documents are, so that those of one pool are resampled together."""
    if name.split(" ")[0] in ANSWERED:
        return "episodes of effects"
    return "sequences of effects" if name == "repeated_loss" else "texts of effects"


def labelled(name: str) -> str:
    """An outcome in words."""
    begin, _, kind = name.partition(" ")
    return f"{LABELS.get(begin, begin.replace('_', ' '))}{', ' if kind else ''}{kind.strip('()')}"


def with_differences(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outcomes, and those that are differences of two of them on the same documents."""
    return {name: values[a] - values[b] for name, (a, b) in DIFFERENCES.items()} | dict(values)


def chances(inputs: Inputs, vocab_size: int) -> dict[str, float]:
    """Each outcome of a model to which all tokens are alike."""
    found = dict.fromkeys(LOSSES, float(np.log(vocab_size))) | dict.fromkeys(DIFFERENCES, 0.0)
    for reading in (r for r in inputs.readings if r.label_PC is not None):
        assert reading.label_PC is not None
        classes_P = (reading.label_PC >= 0).sum(1).double().numpy()
        of_answers = (-np.log(classes_P - 1), np.log(classes_P / (vocab_size - classes_P)), 1 / classes_P)
        found |= {name: float(x_P.mean()) for name, x_P in zip(reading.names, of_answers, strict=True)}
    return found
