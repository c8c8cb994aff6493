"""Format compliance and pattern discovery: the greedy answer to a few-shot prompt, and the labels' odds [Ren §4.2-3].

Letters: N prompts, B prompts in a batch, T positions, D d_model, V vocabulary, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from sih.config import FewShotConfig, TaskConfig
from sih.errors import CheckpointError, SihError
from sih.scores import Drawn, Given, Series
from sih.scores.tables import COLUMNS, mean_row, row, share_row
from sih.texts import prompts
from sih.texts.prompts import Prompt
from sih.texts.written import jsonl

if TYPE_CHECKING:
    from sih.models.gpt_neox import Model

TIMED = ("format_accuracy", "accuracy", "constrained_accuracy")
SCORES = (*TIMED, "label_margin")


@dataclass(frozen=True)
class Answers:
    """Per prompt, (N,) each.

    format_accuracy: the greedy token is one of the task's labels. accuracy: it is the right one.
    constrained_accuracy: the right label has the largest logit of the labels. All 0 or 1.
    label_margin: log-odds of the right label against the others, nats: its logit minus their logsumexp.
    """

    format_accuracy: np.ndarray
    accuracy: np.ndarray
    constrained_accuracy: np.ndarray
    label_margin: np.ndarray


def answer(model: "Model", asked: Sequence[Prompt], batch_tokens: int) -> Answers:
    """Answer every prompt with one greedy token, in batches of similar length.

    Raises:
        CheckpointError: a logit that is not finite.
    """
    values = {score: np.zeros(len(asked)) for score in SCORES}
    for chosen in batches(asked, batch_tokens):
        logits_BV = _last_logits(model, [asked[n].token_ids for n in chosen])
        # A sum is finite when every logit is, in one pass over the vocabulary.
        if not torch.isfinite(logits_BV.sum(-1)).all():
            raise CheckpointError("few-shot logits are NaN or infinite")
        for n, greedy, logits_V in zip(chosen, logits_BV.argmax(-1).tolist(), logits_BV.numpy(), strict=True):
            for score, value in score_prompt(asked[n], greedy, logits_V).items():
                values[score][n] = value
    return Answers(**values)


def batches(asked: Sequence[Prompt], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts of similar length, as many as fit `batch_tokens` when padded, at least one."""
    by_length = sorted(range(len(asked)), key=lambda n: (len(asked[n].token_ids), n))
    start = 0
    while start < len(by_length):
        stop = start + 1
        while stop < len(by_length) and (stop + 1 - start) * len(asked[by_length[stop]].token_ids) <= batch_tokens:
            stop += 1
        yield by_length[start:stop]
        start = stop


def shots_to(share_of_shots: Mapping[int, float], wanted: float = 0.8) -> float:
    """The fewest shots with a share of at least `wanted` [Ren App. C]; NaN when no number of shots has it."""
    return float(min((shots for shots, share in share_of_shots.items() if share >= wanted), default=np.nan))


def score_prompt(prompt: Prompt, greedy: int, logits_V: np.ndarray) -> dict[str, float]:
    """The four scores of one prompt, from the greedy token and the logits that gave it."""
    labels_C = logits_V[list(prompt.label_token_ids)].astype(np.float64)
    return {
        "format_accuracy": float(greedy in prompt.label_token_ids),
        "accuracy": float(greedy == prompt.label_token_ids[prompt.gold]),
        "constrained_accuracy": float(int(labels_C.argmax()) == prompt.gold),
        "label_margin": float(labels_C[prompt.gold] - np.logaddexp.reduce(np.delete(labels_C, prompt.gold))),
    }


def _last_logits(model: "Model", texts: list[tuple[int, ...]]) -> torch.Tensor:
    """Logits after each text's last token, (B, V), on the CPU; only there is the vocabulary computed."""
    longest = max(map(len, texts))
    ids_BT = torch.tensor([[*t, *[t[-1]] * (longest - len(t))] for t in texts])
    last_B = torch.tensor([len(t) - 1 for t in texts], device=model.device)
    hidden_BTD = model.hidden(ids_BT)
    return model.unembed(hidden_BTD[torch.arange(len(texts), device=model.device), last_B]).cpu()


@dataclass
class FewShot:
    """The score; conf/scores/few_shot.yaml and conf/icl/ have the meanings and defaults of its options."""

    shots: list[int]
    prompts: int
    shots_from: int
    template: str
    separator: str
    before_label: str
    words: dict[str, list[str]]
    tasks: dict[str, TaskConfig]
    smallest_rise: float

    version = 2
    shown = ("shots_from", "smallest_rise")
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "few_shot": COLUMNS,
        "few_shot_documents": ("score", "task", "shots", "document", "value"),
    }

    def __post_init__(self) -> None:
        self.tasks = {n: t if isinstance(t, TaskConfig) else TaskConfig(**t) for n, t in self.tasks.items()}
        if not self.tasks or not self.shots:
            raise SihError("scores.few_shot: expected at least one task and one number of shots")
        for name, task in self.tasks.items():
            where = f"scores.few_shot.tasks.{name}"
            if bool(task.classes) == bool(task.pairs):
                raise SihError(f"{where}: expected either classes or pairs")
            if len(task.labels) != len(task.classes or "tf") or len(set(task.labels)) != len(task.labels):
                raise SihError(f"{where}: expected one distinct label for each class, two for pairs")
            if broken := [pair for pair in task.pairs if len(pair.split()) != 2]:
                raise SihError(f"{where}: {broken[0]!r} in pairs; expected two words")
            unknown = {kind for pair in task.classes for kind in pair} - set(self.words)
            if unknown:
                raise SihError(f"{where}: no word list for {sorted(unknown)} in scores.few_shot.words")

    def draw(self, given: Given) -> Drawn:
        """All prompts, the same at every checkpoint."""
        options = FewShotConfig(**{f.name: getattr(self, f.name) for f in fields(FewShotConfig)})
        asked, dropped = prompts.build(options, given.tokenizer, given.context, given.seed)
        labels = {p.task: len(p.label_token_ids) for p in asked}
        text = jsonl(
            {
                "task": p.task,
                "shots": p.shots,
                "token_ids": p.token_ids,
                "gold_token_id": p.label_token_ids[p.gold],
                "label_token_ids": p.label_token_ids,
            }
            for p in asked
        )
        return Drawn(
            asked,
            files={"prompts.jsonl": text},
            facts={"chance": {task: _chance(count, given.vocab_size) for task, count in labels.items()}},
            told=f"{len(asked)} prompts",
            left_out=dropped,
        )

    def measure(self, model: "Model", asked: list[Prompt], batch_tokens: int) -> dict[str, pa.Table]:
        """Every score for each task and number of shots, and for every prompt.

        Raises:
            CheckpointError: a logit that is not finite.
        """
        rows: list[dict[str, object]] = []
        documents: list[dict[str, object]] = []
        shares: dict[tuple[str, int, str], float] = {}
        answers = answer(model, asked, batch_tokens)
        for task, shots in dict.fromkeys((p.task, p.shots) for p in asked):
            chosen = [n for n, p in enumerate(asked) if (p.task, p.shots) == (task, shots)]
            chance = _chance(len(asked[chosen[0]].label_token_ids), model.vocab_size)
            for score in SCORES:
                value_N = getattr(answers, score)[chosen]
                of_kind = share_row if score in TIMED else mean_row
                rows.append(of_kind(score, task, shots, value_N, chance[score]))
                shares[task, shots, score] = float(value_N.mean())
                documents += [
                    {
                        "score": score,
                        "task": task,
                        "shots": shots,
                        "document": f"query-{asked[n].query:03d}",
                        "value": float(v),
                    }
                    for n, v in zip(chosen, value_N, strict=True)
                ]
        for task in dict.fromkeys(p.task for p in asked):
            format_of = {shots: v for (t, shots, score), v in shares.items() if (t, score) == (task, SCORES[0])}
            count = sum(p.task == task for p in asked)
            rows.append(row("shots_to_format", task, None, count, shots_to(format_of), *[float("nan")] * 3))
        return {"few_shot": pa.Table.from_pylist(rows), "few_shot_documents": pa.Table.from_pylist(documents)}

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """Shares of prompts with at least `shots_from` shots, of pooled tasks and of each task by itself.

        All classification tasks are pooled, and so are all tasks that ask whether two words are related.
        """
        chance, found = facts["chance"], []
        asked = [name for name in self.tasks if name in chance]
        justified = [name for name in asked if self.tasks[name].pairs]
        for score in TIMED:
            for name, tasks in (
                (score, [t for t in asked if t not in justified]),
                (f"{score} (relations)", justified),
            ):
                if tasks:
                    overall = float(np.mean([chance[t][score] for t in tasks]))
                    found.append(self._series(name, score, tasks, overall, headline=True))
                    found += [self._series(f"{score}/{t}", score, [t], chance[t][score], headline=False) for t in tasks]
        return found

    def _series(self, name: str, score: str, tasks: list[str], chance: float, headline: bool) -> Series:
        shots = [n for n in self.shots if n >= self.shots_from]
        return Series(
            name=name,
            label=name.replace("_", " ").replace("/", ", "),
            kind="icl",
            table="few_shot_documents",
            value="value",
            where={"score": [score], "task": tasks, "shots": shots},
            unit="share of prompts",
            pool="prompts",
            chance=chance,
            smallest_rise=self.smallest_rise,
            headline=headline,
        )


def _chance(labels: int, vocab_size: int) -> dict[str, float]:
    return {
        "format_accuracy": labels / vocab_size,
        "accuracy": 1 / labels,
        "constrained_accuracy": 1 / labels,
        "label_margin": -float(np.log(labels - 1)),
    }
