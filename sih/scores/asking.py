"""What a model answers wherever an episode asks for a label: its greedy token, and the logits of the labels.

Letters: B episodes in a batch, P answers in a batch, N answers of all episodes, T positions, D d_model, V vocabulary,
C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sih.errors import CheckpointError
from sih.texts.episodes import Episode

if TYPE_CHECKING:
    from sih.models.model import Model

# Logits over the vocabulary of as many answers at a time: 100 MB with Pythia's. All of a batch would be its largest
# tensor by far.
AT_ONCE = 512


@dataclass(frozen=True)
class Batch:
    """Episodes of similar length, padded on the right, and where they are asked.

    place_P: each answer's place among those of all episodes, (N,) in their order.
    row_P, position_P: its episode in the batch, and the token whose logits answer.
    label_PC: its task's label tokens; classes that the task does not have repeat the first.
    """

    ids_BT: torch.Tensor
    place_P: np.ndarray
    row_P: torch.Tensor
    position_P: torch.Tensor
    label_PC: torch.Tensor


def batches(asked: Sequence[Episode], batch_tokens: int) -> Iterator[Batch]:
    """All episodes, as many in a batch as fit `batch_tokens` when padded, at least one."""
    first_E, labels_EC = np.cumsum([0, *(len(e.asked) for e in asked)]), labels_of(asked)
    chosen: list[int] = []
    for n in sorted(range(len(asked)), key=lambda n: (len(asked[n].token_ids), n)):
        if chosen and (len(chosen) + 1) * len(asked[n].token_ids) > batch_tokens:
            yield _batch(asked, chosen, first_E, labels_EC)
            chosen = []
        chosen.append(n)
    yield _batch(asked, chosen, first_E, labels_EC)


def labels_of(asked: Sequence[Episode]) -> np.ndarray:
    """The token of each class's label, (E, C); classes that an episode does not have repeat the first."""
    return _padded([e.label_token_ids for e in asked])


def task_labels_of(asked: Sequence[Episode]) -> np.ndarray:
    """The tokens of all labels of each episode's task, (E, labels); the first is repeated where it has fewer."""
    return _padded([e.task_token_ids for e in asked])


def _padded(ids_E: Sequence[tuple[int, ...]]) -> np.ndarray:
    most = max(map(len, ids_E))
    return np.array([[*ids, *ids[:1] * (most - len(ids))] for ids in ids_E])


def _batch(asked: Sequence[Episode], chosen: list[int], first_E: np.ndarray, labels_EC: np.ndarray) -> Batch:
    texts = [asked[n] for n in chosen]
    longest = max(len(e.token_ids) for e in texts)
    count_B = [len(e.asked) for e in texts]
    return Batch(
        ids_BT=torch.tensor([[*e.token_ids, *e.token_ids[-1:] * (longest - len(e.token_ids))] for e in texts]),
        place_P=np.concatenate([np.arange(first_E[n], first_E[n + 1]) for n in chosen]),
        row_P=torch.arange(len(texts)).repeat_interleave(torch.tensor(count_B)),
        position_P=torch.tensor([position for e in texts for position in e.asked]),
        label_PC=torch.tensor(np.repeat(labels_EC[chosen], count_B, axis=0)),
    )


def read(model: "Model", asked: Sequence[Episode], batch_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The greedy token (N,), and the logits of the labels (N, C), float64, at all answers of all episodes.

    Raises:
        CheckpointError: a logit that is not finite.
    """
    greedy_N = np.empty(sum(len(e.asked) for e in asked), dtype=np.int64)
    logit_NC = np.empty((len(greedy_N), max(len(e.label_token_ids) for e in asked)))
    for batch in batches(asked, batch_tokens):
        found = _read(model, batch)
        if not found[:, 0].all():
            raise CheckpointError("few-shot logits are NaN or infinite")
        greedy_N[batch.place_P], logit_NC[batch.place_P] = found[:, 1], found[:, 2:]
    return greedy_N, logit_NC


@torch.inference_mode()
def _read(model: "Model", batch: Batch) -> np.ndarray:
    """Whether all logits are finite, the greedy token, and the labels' logits, (P, 2 + C).

    Everything stays on the device until the batch is done, and is copied once.
    """
    row_P, position_P, label_PC = (t.to(model.device) for t in (batch.row_P, batch.position_P, batch.label_PC))
    hidden_PD = model.hidden(batch.ids_BT)[row_P, position_P]
    found = []
    for hidden, label in zip(hidden_PD.split(AT_ONCE), label_PC.split(AT_ONCE), strict=True):
        logits = model.unembed(hidden)
        # A sum is finite when every logit is, in one pass over the vocabulary. Ids are exact in float32 up to 2^24.
        finite = torch.isfinite(logits.sum(-1, keepdim=True))
        greedy = logits.argmax(-1, keepdim=True)
        found.append(torch.cat([finite.float(), greedy.float(), logits.gather(1, label)], dim=1))
    return torch.cat(found).cpu().numpy()
