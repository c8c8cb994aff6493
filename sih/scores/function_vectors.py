"""Function-vector heads: their output on clean prompts of a task restores the answer where labels are permuted.

The causal indirect effect of Todd et al. 2024 and Yin & Steinhardt 2025. a[t, h] is the mean of what head h puts out at
the last position of clean prompts of task t. On other prompts of the task, whose examples have permuted labels, it is
log P(answer | z[h, last] := a[t, h]) - log P(answer), and the same for P itself, which is about 0 whatever a head does
at early checkpoints. Heads that raise the answer (writers) and heads that lower it (cancellers) are two populations,
and are never ranked together by size.

Letters: B prompts, T positions, L layers, H heads, K d_head, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from sih.config import FewShotConfig, TaskConfig
from sih.errors import CheckpointError, SihError
from sih.models.replacing import at_the_end, outputs
from sih.scores import Drawn, Given, HeadMap, Series
from sih.texts import episodes
from sih.texts.written import jsonl

if TYPE_CHECKING:
    from sih.models.model import Model


@dataclass(frozen=True)
class Prompts:
    """Prompts of one task, each up to where its last label comes.

    clean: ids of those that a head's mean output is taken on. corrupted: (document, ids, answer), with permuted labels.
    """

    task: str
    clean: list[tuple[int, ...]]
    corrupted: list[tuple[str, tuple[int, ...], int]]


def mean_at_the_end(model: "Model", prompts: Sequence[tuple[int, ...]], batch_tokens: int) -> torch.Tensor:
    """The mean over prompts of every head's output at the last position, LHK, float32."""
    total_LHK = torch.zeros(model.n_layers, model.n_heads, model.d_head, dtype=torch.float64)
    for ids_BT in _by_length(prompts, batch_tokens):
        for layer, z_BTHK in outputs(model, ids_BT).items():
            total_LHK[layer] += z_BTHK[:, -1].float().sum(0).cpu().double()
    return (total_LHK / len(prompts)).float().to(model.device)


def _by_length(prompts: Sequence[tuple[int, ...]], batch_tokens: int) -> list[torch.Tensor]:
    """Prompts of equal length together, at most `batch_tokens` at a time."""
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for ids in prompts:
        by_length.setdefault(len(ids), []).append(ids)
    return [
        part
        for width, of_width in sorted(by_length.items())
        for part in torch.tensor(of_width).split(max(1, batch_tokens // width))
    ]


@torch.inference_mode()
def indirect_effects(
    model: "Model", ids_BT: torch.Tensor, answer_B: torch.Tensor, mean_LHK: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Each head's change of log P(answer), nats, and of P(answer), at the end of prompts of one length: (B, L, H) each.

    Raises:
        CheckpointError: a probability that is not finite.
    """
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    hidden_NBD = at_the_end(model, ids_BT, heads, mean_LHK)[:, :, 0]
    rows = [
        model.unembed(hidden_BD).log_softmax(-1).gather(1, answer_B[:, None].to(model.device))[:, 0]
        for hidden_BD in hidden_NBD
    ]
    log_p_BN = torch.stack(rows, dim=1).cpu().double().numpy()
    if not np.isfinite(log_p_BN).all():
        raise CheckpointError("probabilities of answers are NaN or 0")
    shape = (len(ids_BT), model.n_layers, model.n_heads)
    change, p_BN = log_p_BN[:, 1:] - log_p_BN[:, :1], np.exp(log_p_BN)
    return change.reshape(shape), (p_BN[:, 1:] - p_BN[:, :1]).reshape(shape)


@dataclass
class FunctionVectors:
    """The score; conf/scores/function_vectors.yaml has the meanings and defaults of its options."""

    shots: int
    clean: int
    corrupted: int
    template: str
    separator: str
    before_label: str
    words: dict[str, list[str]]
    tasks: dict[str, TaskConfig]
    smallest_rise: float

    version = 1
    shown = ("smallest_rise",)
    intervenes = True
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "function_vector_heads": ("layer", "head", "delta_log_prob", "delta_prob"),
        "function_vector_documents": ("task", "document", "layer", "head", "delta_log_prob", "delta_prob", "lowers"),
    }

    def __post_init__(self) -> None:
        self.tasks = {n: t if isinstance(t, TaskConfig) else TaskConfig(**t) for n, t in self.tasks.items()}
        if min(self.shots, self.clean, self.corrupted) < 2:
            raise SihError("scores.function_vectors: expected shots, clean and corrupted of at least 2")

    def draw(self, given: Given) -> Drawn:
        """Prompts of every task, of the same number of examples; fewer where the context is too short."""
        shared = {f.name: getattr(self, f.name) for f in fields(FewShotConfig) if hasattr(self, f.name)}
        options = FewShotConfig(**shared, episodes=self.clean + self.corrupted, shots_from=1)
        asked, dropped = episodes.build(options, given.tokenizer, given.context, given.seed + 2, given.start)
        found = []
        for task in dict.fromkeys(e.task for e in asked):
            of_task = [e for e in asked if e.task == task]
            rng = np.random.default_rng([given.seed, *f"permuted {task}".encode()])
            corrupted = [_corrupted(e, rng) for e in of_task[self.clean :]]
            found.append(
                Prompts(
                    task,
                    [e.token_ids[: e.asked[-1] + 1] for e in of_task[: self.clean]],
                    [(f"{task}/prompt-{e.number:03d}", ids, e.label_token_ids[e.gold[-1]])
                     for e, ids in zip(of_task[self.clean :], corrupted, strict=True)],
                )
            )  # fmt: skip
        written: list[dict[str, Any]] = []
        for p in found:
            written += [{"document": f"{p.task}/clean", "token_ids": ids} for ids in p.clean]
            written += [{"document": d, "token_ids": ids, "answer": answer} for d, ids, answer in p.corrupted]
        return Drawn(found, files={"prompts.jsonl": jsonl(written)}, left_out=dropped,
                     told=f"{sum(len(p.corrupted) for p in found)} prompts with permuted labels")  # fmt: skip

    def measure(self, model: "Model", tasks: list[Prompts], batch_tokens: int) -> dict[str, pa.Table]:
        """Every head's indirect effect on each prompt with permuted labels, and its mean over tasks and prompts.

        Raises:
            CheckpointError: a probability that is not finite.
        """
        heads = model.n_layers * model.n_heads
        parts, means = [], []
        for prompts in tasks:
            mean_LHK = mean_at_the_end(model, prompts.clean, batch_tokens)
            of_task: list[tuple[str, np.ndarray, np.ndarray]] = []
            answers = {ids: (document, answer) for document, ids, answer in prompts.corrupted}
            for ids_BT in _by_length([ids for _, ids, _ in prompts.corrupted], max(1, batch_tokens)):
                size = max(1, batch_tokens // (ids_BT.shape[1] + min(heads, 512)))
                for ids in ids_BT.split(size):
                    known = [answers[tuple(map(int, row))] for row in ids]
                    answer_B = torch.tensor([answer for _, answer in known])
                    log_p, p = indirect_effects(model, ids, answer_B, mean_LHK)
                    of_task += [(known[b][0], log_p[b], p[b]) for b in range(len(ids))]
            parts.append(_documents(prompts.task, of_task))
            means.append([np.mean([x for _, x, _ in of_task], axis=0), np.mean([x for _, _, x in of_task], axis=0)])
        log_p_LH, p_LH = np.mean(means, axis=0)
        layer, head = (x.ravel() for x in np.indices(log_p_LH.shape))
        table = {"layer": layer, "head": head, "delta_log_prob": log_p_LH.ravel(), "delta_prob": p_LH.ravel()}
        return {
            "function_vector_heads": pa.table(table),
            "function_vector_documents": pa.concat_tables(parts).unify_dictionaries(),
        }

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """Heads that raise the right answer, and heads that lower it."""
        return [
            Series(
                name=name,
                label=label,
                kind="heads",
                table="function_vector_documents",
                value=column,
                unit="nats",
                pool="prompts",
                smallest_rise=self.smallest_rise,
                chance=0.0,
                headline=False,
            )
            for name, label, column in (
                ("function_vector_writers", "function-vector writers", "delta_log_prob"),
                ("function_vector_cancellers", "function-vector cancellers", "lowers"),
            )
        ]

    def maps(self, facts: Mapping[str, Any]) -> Sequence[HeadMap]:
        """The mean indirect effect of every head."""
        return [HeadMap("function vectors", "function vectors", "function_vector_heads", ("delta_log_prob",))]


def _corrupted(e: episodes.Episode, rng: np.random.Generator) -> tuple[int, ...]:
    """The prompt, with the labels of its examples permuted; the same labels in all, other pairs beside them."""
    ids = list(e.token_ids[: e.asked[-1] + 1])
    places = [position + 1 for position in e.asked[:-1]]
    permuted = rng.permutation(len(places))
    for place, other in zip(places, permuted, strict=True):
        ids[place] = e.token_ids[places[other]]
    return tuple(ids)


def _documents(task: str, rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> pa.Table:
    """A row for each prompt and head, in types that take little space."""
    log_p_BLH, p_BLH = np.stack([row[1] for row in rows]), np.stack([row[2] for row in rows])
    prompt, layer, head = (x.ravel() for x in np.indices(log_p_BLH.shape))
    names = pa.array([row[0] for row in rows])
    return pa.table(
        {
            "task": pa.DictionaryArray.from_arrays(np.zeros(len(prompt), np.int32), pa.array([task])),
            "document": pa.DictionaryArray.from_arrays(prompt.astype(np.int32), names),
            "layer": layer.astype(np.int16),
            "head": head.astype(np.int16),
            "delta_log_prob": log_p_BLH.ravel().astype(np.float32),
            "delta_prob": p_BLH.ravel().astype(np.float32),
            "lowers": -log_p_BLH.ravel().astype(np.float32),
        }
    )
