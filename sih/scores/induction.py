"""Induction and related scores, from repeated random tokens and from the weights alone [Olsson; Ren Fig. 9].

Letters: B sequences, T positions, L layers, H heads, U sampled tokens, K d_head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from sih.errors import SihError
from sih.scores import Drawn, Given, HeadMap, Series

if TYPE_CHECKING:
    from sih.models.model import Model


@dataclass(frozen=True)
class RandomTokens:
    """Seeded draws of token ids, the same at every checkpoint; ids, never text that is tokenised again."""

    repeated_BT: torch.Tensor  # a half of distinct ids, then the same half again; before them the document start
    copying_U: torch.Tensor  # distinct ids for the copying score
    begins: bool  # whether there is a document start

    @property
    def half(self) -> int:
        return self.repeated_BT.shape[1] // 2


def draw(
    n_ids: int, sequences: int, length: int, copying_tokens: int, seed: int, start: int | None = None
) -> RandomTokens:
    """Draw ids uniformly below `n_ids`, the tokenizer's size, since padded embedding rows are untrained.

    `start` is the document start, which begins every sequence and is never drawn; None for none. Small vocabularies
    give shorter halves and fewer copying ids, since ids in a draw are distinct.
    """
    rng = np.random.default_rng([seed, *b"random tokens"])
    ids = np.array([i for i in range(n_ids) if i != start])
    half_BT = np.stack([rng.choice(ids, min(length, len(ids)), replace=False) for _ in range(sequences)])
    copying_U = rng.choice(ids, min(copying_tokens, len(ids)), replace=False)
    begin = [] if start is None else [np.full((sequences, 1), start)]
    whole_BT = np.concatenate([*begin, half_BT, half_BT], axis=1)
    return RandomTokens(torch.from_numpy(whole_BT), torch.from_numpy(copying_U), start is not None)


GROUPS = 16  # of sampled tokens, which stand in for documents

# Mean attention to one place, in [0, 1], over the positions for which that place exists. On tokens repeated once:
ATTENTION_SCORES = (
    "prefix_matching_score",  # from the second half (but its last) to the token after the earlier occurrence [Olsson]
    "previous_token_score",  # from any token but the first to the one before
    "duplicate_token_score",  # from the second half to the earlier occurrence itself
    "first_token_share",  # to position 0, from all others: the attention sink, the document start where there is one
)


def attention_scores(model: "Model", tokens: RandomTokens, batch_tokens: int) -> np.ndarray:
    """ATTENTION_SCORES of every sequence and head, float64 (scores, B, L, H).

    Uniform attention gives prefix matching and duplicate token about 1 / (1.5 * half).
    """
    half, first, total = tokens.half, int(tokens.begins), tokens.repeated_BT.shape[1]
    size = max(1, batch_tokens // total)
    found = []
    for ids_BT in tokens.repeated_BT.split(size):
        layers: list[torch.Tensor] = []

        def observe(layer: int, attn_BHTT: torch.Tensor, out_BTHK: torch.Tensor, layers: list = layers) -> None:
            # From token half + i back to i + 1 is an offset of half - 1; token half - 1 has no earlier one. A diagonal
            # is indexed by the earlier position, which `first` shifts where there is a document start.
            to_next = attn_BHTT.diagonal(offset=-(half - 1), dim1=-2, dim2=-1)[..., first + 1 : first + half]
            to_previous = attn_BHTT.diagonal(offset=-1, dim1=-2, dim2=-1)[..., first:]
            to_same = attn_BHTT.diagonal(offset=-half, dim1=-2, dim2=-1)[..., first:]
            to_first = attn_BHTT[..., 1:, 0]
            means = [a.mean(-1) for a in (to_next, to_previous, to_same, to_first)]
            layers.append(torch.stack(means))

        model.hidden(ids_BT, observe)
        found.append(torch.stack(layers, dim=2).cpu().double())
    return torch.cat(found, dim=1).numpy()


def copying_score(model: "Model", tokens: RandomTokens) -> np.ndarray:
    """Copying score of every head, LH, in [0, 1]: the mean of `copying_shares` over the tokens that have one."""
    return np.nanmean(copying_shares(model, tokens), axis=-1)


@torch.inference_mode()
def copying_shares(model: "Model", tokens: RandomTokens) -> np.ndarray:
    """How much of what a head raises for each sampled token is that token, LHU, in [0, 1].

    From the weights alone, so no texts are sampled: each sampled token goes through the OV circuit, with a softmax over
    the sampled tokens. What exceeds the mean counts as raised (mean subtracted, clipped at 0). NaN for tokens for which
    nothing is raised. A head that copies nothing in particular has about 1 / U.
    """
    shares = []
    for layer in range(model.n_layers):
        values_HUK, targets_HUK = model.ov_factors(layer, tokens.copying_U)
        logits_HUU = values_HUK @ targets_HUK.mT
        # A multiple of the softmax, minus 1: see events.shares_of_events.
        p_HUU = torch.expm1(logits_HUU - logits_HUU.amax(-1, keepdim=True))
        q_HUU = (p_HUU - p_HUU.mean(-1, keepdim=True)).clamp_min(0)
        shares.append(q_HUU.diagonal(dim1=-2, dim2=-1) / q_HUU.sum(-1))
    return torch.stack(shares).cpu().double().numpy()


def copying_by_group(share_LHU: np.ndarray) -> pa.Table:
    """The mean over each group of neighbouring sampled tokens, as a document of its own; NaN where none has a share."""
    groups = np.array_split(np.arange(share_LHU.shape[-1]), min(GROUPS, share_LHU.shape[-1]))
    total_GLH = np.stack([np.nansum(share_LHU[..., g], -1) for g in groups])
    count_GLH = np.stack([np.isfinite(share_LHU[..., g]).sum(-1) for g in groups])
    group, layer, head = (x.ravel() for x in np.indices(total_GLH.shape))
    with np.errstate(invalid="ignore"):
        value = (total_GLH / count_GLH).ravel().astype(np.float32)
    names = pa.array([f"tokens-{n:02d}" for n in range(len(groups))])
    documents = pa.DictionaryArray.from_arrays(pa.array(group.astype(np.int32)), names)
    columns = {"document": documents, "layer": layer.astype(np.int16), "head": head.astype(np.int16)}
    return pa.table(columns | {"copying_score": value})


@dataclass
class Induction:
    """The score; conf/scores/induction.yaml has the meanings and defaults of its options."""

    sequences: int
    length: int
    copying_tokens: int
    smallest_rise: float

    version = 4
    shown = ("smallest_rise",)
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "induction_heads": ("layer", "head", "prefix_matching_score", "copying_score", "previous_token_score",
                            "duplicate_token_score", "first_token_share"),
        "induction_documents": ("document", "layer", "head", *ATTENTION_SCORES),
        "induction_copying": ("document", "layer", "head", "copying_score"),
    }  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("sequences", "length"):
            if getattr(self, name) < 2:
                raise SihError(f"scores.induction.{name}={getattr(self, name)}; expected at least 2")

    def draw(self, given: Given) -> Drawn:
        """Random ids, the same at every checkpoint."""
        tokens = draw(given.n_ids, self.sequences, self.length, self.copying_tokens, given.seed, given.start)
        return Drawn(
            tokens,
            facts={"half": tokens.half, "begins": tokens.begins, "copied": len(tokens.copying_U)},
            told=f"{self.sequences} random sequences",
        )

    def measure(self, model: "Model", tokens: RandomTokens, batch_tokens: int) -> dict[str, pa.Table]:
        """For every head, means over sequences and each sequence's own value (float32)."""
        score_ABLH = attention_scores(model, tokens, batch_tokens)
        share_LHU = copying_shares(model, tokens)
        copying_LH = np.nanmean(share_LHU, axis=-1)
        layer, head = (x.ravel() for x in np.indices(copying_LH.shape))
        sequence, layer_B, head_B = (x.ravel() for x in np.indices(score_ABLH.shape[1:]))
        by_head = {"layer": layer, "head": head, "prefix_matching_score": None, "copying_score": copying_LH.ravel()}
        names = pa.array([f"sequence-{n:03d}" for n in range(score_ABLH.shape[1])])
        by_sequence = {
            "document": pa.DictionaryArray.from_arrays(pa.array(sequence.astype(np.int32)), names),
            "layer": layer_B.astype(np.int16),
            "head": head_B.astype(np.int16),
        }
        for name, value_BLH in zip(ATTENTION_SCORES, score_ABLH, strict=True):
            by_head[name] = value_BLH.mean(0).ravel()
            by_sequence[name] = value_BLH.ravel().astype(np.float32)
        return {
            "induction_heads": pa.table(by_head),
            "induction_documents": pa.table(by_sequence),
            "induction_copying": copying_by_group(share_LHU),
        }

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """Prefix matching of the chosen heads; of others, attention to the previous and the same token, and copying.

        Chance is uniform attention, or one of the sampled tokens.
        """
        half, first = facts["half"], int(facts["begins"])
        places = {
            "prefix_matching": first + np.arange(half + 1, 2 * half),
            "previous_token": first + np.arange(2, 2 * half + 1),
            "duplicate_token": first + np.arange(half + 1, 2 * half + 1),
        }
        copying = Series(
            "copying", "copying", "heads", "induction_copying", "copying_score", "share", "sampled tokens",
            self.smallest_rise, chance=1 / facts["copied"], headline=False,
        )  # fmt: skip
        of_attention = [
            Series(
                name=name,
                label=name.replace("_", " "),
                kind="heads",
                table="induction_documents",
                value=f"{name}_score",
                unit="mean attention",
                pool="sequences",
                smallest_rise=self.smallest_rise,
                chance=float(np.mean(1 / seen)),
                headline=name == "prefix_matching",
            )
            for name, seen in places.items()
        ]
        return [*of_attention, copying]

    def maps(self, facts: Mapping[str, Any]) -> Sequence[HeadMap]:
        """Every attention score and the copying score, of every head."""

        def one(label: str, column: str, picture: bool = False, summary: str | None = None) -> HeadMap:
            return HeadMap(column, label, "induction_heads", (column,), picture=picture, summary=summary)

        return [
            one("prefix matching", "prefix_matching_score", picture=True),
            one("previous token", "previous_token_score", picture=True),
            one("copying", "copying_score", picture=True, summary="max"),
            one("duplicate token", "duplicate_token_score"),
            one("first token", "first_token_share"),
        ]
