"""Induction and its neighbours, on repeated random tokens and on the weights alone [Olsson; Ren Fig. 9].

Letters: B sequences, T positions, L layers, H heads, U sampled tokens, K d_head.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sih.model import Model


@dataclass(frozen=True)
class RandomTokens:
    """Seeded draws of token ids, the same at every checkpoint; ids, never text that is tokenised again."""

    repeated_BT: torch.Tensor  # a half of distinct ids, twice
    copying_U: torch.Tensor  # distinct ids for the copying score

    @property
    def half(self) -> int:
        return self.repeated_BT.shape[1] // 2


def draw(n_ids: int, sequences: int, length: int, copying_tokens: int, seed: int) -> RandomTokens:
    """Draw ids uniformly below `n_ids`, the tokenizer's size: padded embedding rows are untrained.

    Small vocabularies give shorter halves and fewer copying ids, since ids in a draw are distinct.
    """
    rng = np.random.default_rng([seed, *b"random tokens"])
    half_BT = np.stack([rng.choice(n_ids, min(length, n_ids), replace=False) for _ in range(sequences)])
    copying_U = rng.choice(n_ids, min(copying_tokens, n_ids), replace=False)
    return RandomTokens(torch.from_numpy(np.concatenate([half_BT, half_BT], axis=1)), torch.from_numpy(copying_U))


def attention_scores(model: Model, tokens: RandomTokens, batch_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Prefix-matching and previous-token score of every sequence and head.

    Returns:
        prefix_matching_BLH: mean attention, over the second half's tokens but the last, from a token to the
            token after its earlier occurrence, in [0, 1]; uniform attention gives about 1 / (1.5 * half).
        previous_token_BLH: mean attention, over all positions but the first, to the position before, in [0, 1].
    """
    half, total = tokens.half, tokens.repeated_BT.shape[1]
    size = max(1, batch_tokens // total)
    prefix, previous = [], []
    for ids_BT in tokens.repeated_BT.split(size):
        seen: list[tuple[torch.Tensor, ...]] = []

        def observe(layer: int, attn_BHTT: torch.Tensor, seen: list = seen) -> None:
            # From position half + i back to i + 1 is an offset of half - 1; the last one would look at itself's half.
            to_next = attn_BHTT.diagonal(offset=-(half - 1), dim1=-2, dim2=-1)[..., 1:half]
            to_previous = attn_BHTT.diagonal(offset=-1, dim1=-2, dim2=-1)
            seen.append(tuple(a.cpu().double().mean(-1) for a in (to_next, to_previous)))

        model.hidden(ids_BT, observe)
        prefix.append(torch.stack([a for a, _ in seen], dim=1))
        previous.append(torch.stack([b for _, b in seen], dim=1))
    return torch.cat(prefix).numpy(), torch.cat(previous).numpy()


@torch.inference_mode()
def copying_score(model: Model, tokens: RandomTokens) -> np.ndarray:
    """Copying score of every head, LH, in [0, 1]: from the weights alone, so it has no sampling of texts.

    Each sampled token goes through the OV circuit; of the probability raised above the mean over the sampled
    tokens (softmax, mean subtracted, clipped at 0), the share that falls on the token itself, averaged over
    the tokens. NaN tokens (nothing raised) are left out; a head that copies nothing in particular has about
    1 / U.
    """
    scores = []
    for layer in range(model.n_layers):
        values_HUK, targets_HUK = model.ov_factors(layer, tokens.copying_U)
        p_HUU = torch.softmax(values_HUK @ targets_HUK.mT, dim=-1)
        q_HUU = (p_HUU - p_HUU.mean(-1, keepdim=True)).clamp_min(0)
        share_HU = q_HUU.diagonal(dim1=-2, dim2=-1) / q_HUU.sum(-1)
        scores.append(share_HU.cpu().double().nanmean(-1))
    return torch.stack(scores).numpy()
