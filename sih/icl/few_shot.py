"""Format compliance and pattern discovery: the greedy answer to a few-shot prompt, and the labels' odds [Ren §4.2-3].

Letters: N prompts, B prompts in a batch, T positions, D d_model, V vocabulary, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sih.errors import CheckpointError
from sih.icl.prompts import Prompt
from sih.model import Model

SCORES = ("format_accuracy", "accuracy", "constrained_accuracy", "label_margin")


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


def answer(model: Model, prompts: Sequence[Prompt], batch_tokens: int) -> Answers:
    """Ask every prompt for one greedy token, in batches of like length.

    Raises:
        CheckpointError: a logit that is not finite.
    """
    values = {score: np.zeros(len(prompts)) for score in SCORES}
    for chosen in batches(prompts, batch_tokens):
        logits_BV = _last_logits(model, [prompts[n].token_ids for n in chosen])
        # A sum is finite when every logit is, in one pass over the vocabulary.
        if not torch.isfinite(logits_BV.sum(-1)).all():
            raise CheckpointError("few-shot logits are NaN or infinite")
        for n, greedy, logits_V in zip(chosen, logits_BV.argmax(-1).tolist(), logits_BV.numpy(), strict=True):
            for score, value in score_prompt(prompts[n], greedy, logits_V).items():
                values[score][n] = value
    return Answers(**values)


def batches(prompts: Sequence[Prompt], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts of like length, as many as fit `batch_tokens` when padded, at least one."""
    by_length = sorted(range(len(prompts)), key=lambda n: (len(prompts[n].token_ids), n))
    start = 0
    while start < len(by_length):
        stop = start + 1
        while stop < len(by_length) and (stop + 1 - start) * len(prompts[by_length[stop]].token_ids) <= batch_tokens:
            stop += 1
        yield by_length[start:stop]
        start = stop


def shots_to(share_of_shots: Mapping[int, float], wanted: float = 0.8) -> float:
    """The fewest shots with a share of at least `wanted` [Ren App. C]; NaN when no number of shots has it."""
    return float(min((shots for shots, share in share_of_shots.items() if share >= wanted), default=np.nan))


def score_prompt(prompt: Prompt, greedy: int, logits_V: np.ndarray) -> dict[str, float]:
    """The four scores of one prompt from the greedy token and the logits behind it."""
    labels_C = logits_V[list(prompt.label_token_ids)].astype(np.float64)
    return {
        "format_accuracy": float(greedy in prompt.label_token_ids),
        "accuracy": float(greedy == prompt.label_token_ids[prompt.gold]),
        "constrained_accuracy": float(int(labels_C.argmax()) == prompt.gold),
        "label_margin": float(labels_C[prompt.gold] - np.logaddexp.reduce(np.delete(labels_C, prompt.gold))),
    }


def _last_logits(model: Model, texts: list[tuple[int, ...]]) -> torch.Tensor:
    """Logits behind each text's last token, (B, V), on the CPU; the vocabulary is read there alone."""
    longest = max(map(len, texts))
    ids_BT = torch.tensor([[*t, *[t[-1]] * (longest - len(t))] for t in texts])
    last_B = torch.tensor([len(t) - 1 for t in texts], device=model.device)
    hidden_BTD = model.hidden(ids_BT)
    return model.unembed(hidden_BTD[torch.arange(len(texts), device=model.device), last_B]).cpu()
