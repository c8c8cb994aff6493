"""Loss reduction: how much better late tokens of a text are predicted than early ones [Ren §4.1; Olsson].

Letters: B documents, T positions, P positions whose loss is read, D d_model.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sih.errors import CheckpointError, SihError
from sih.model import Model


def needed_length(windows: Mapping[str, Sequence[int]]) -> int:
    """Tokens that a text must have: the last prediction needs the token after it."""
    return max(window[3] for window in windows.values()) + 1


def check_context(windows: Mapping[str, Sequence[int]], context: int) -> None:
    """Raises SihError when a window reaches beyond the model's context."""
    if needed_length(windows) > context:
        name = max(windows, key=lambda n: windows[n][3])
        raise SihError(
            f"icl.loss.windows.{name} needs {windows[name][3] + 1} tokens, the model's context is {context}; "
            "name windows that fit, as conf/icl/generated.yaml does"
        )


def positions_read(windows: Mapping[str, Sequence[int]]) -> list[int]:
    """Predictions that some window or the loss curve reads, increasing; the vocabulary is looked at there alone."""
    read = set(log_spaced_positions(needed_length(windows) - 1))
    for early, early_stop, late, late_stop in windows.values():
        read |= {*range(early, early_stop), *range(late, late_stop)}
    return sorted(read)


def token_losses(model: Model, ids_BT: torch.Tensor, positions: Sequence[int], batch_tokens: int) -> np.ndarray:
    """Loss of predictions, nats, float64 (B, T - 1): entry t is -log p(token t + 1 | tokens 0..t).

    NaN wherever t is not in `positions`.

    Raises:
        CheckpointError: a loss that is not finite.
    """
    size = max(1, batch_tokens // ids_BT.shape[1])
    read_P = torch.tensor(positions)
    losses = []
    for chunk_BT in ids_BT.split(size):
        hidden_BPD = model.hidden(chunk_BT)[:, read_P.to(model.device)]
        target_BP = chunk_BT[:, read_P + 1].to(model.device)
        # One text's logits at a time: B x P x V of them would be the largest tensor of the whole sweep.
        rows = [
            _losses(model.unembed(hidden_PD), target_P)
            for hidden_PD, target_P in zip(hidden_BPD, target_BP, strict=True)
        ]
        losses.append(torch.stack(rows).cpu().double())
    loss_BP = torch.cat(losses).numpy()
    if not np.isfinite(loss_BP).all():
        raise CheckpointError(f"{(~np.isfinite(loss_BP)).sum()} of {loss_BP.size} losses are NaN or infinite")
    loss_BT = np.full((len(ids_BT), ids_BT.shape[1] - 1), np.nan)
    loss_BT[:, positions] = loss_BP
    return loss_BT


@torch.inference_mode()
def _losses(logits_PV: torch.Tensor, target_P: torch.Tensor) -> torch.Tensor:
    """-log p of each target, (P,). Overwrites the logits: a second tensor of their size costs more than the sum."""
    torch.log_softmax(logits_PV, dim=1, out=logits_PV)
    return -logits_PV.gather(1, target_P[:, None])[:, 0]


def loss_reduction(loss_BT: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """Each document's mean loss in the late window minus that in the early one, nats, (B,).

    `window` is [early start, early stop, late start, late stop], 0-based predictions, half open. Negative:
    later tokens are predicted better, more in-context learning.
    """
    early, early_stop, late, late_stop = window
    return loss_BT[:, late:late_stop].mean(1) - loss_BT[:, early:early_stop].mean(1)


def log_spaced_positions(count: int) -> list[int]:
    """Predictions 0, 1, 3, 7, 15, ... and the last of `count`: where the loss curve is kept."""
    return sorted({2**k - 1 for k in range(count.bit_length()) if 2**k <= count} | {count - 1})
