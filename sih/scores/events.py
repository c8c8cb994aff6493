"""Events of a relation for every head, exactly and without the vocabulary [Ren §3, Eq. 1-3].

For a triplet (subject at s, object at o) and every position j >= max(s, o), a head scores an *event* when
its attention from j is largest at s (the gate). The event's value is the share

    a = q_o / sum_t q_t,   q_t = max(0, p_t - mean p),   p = softmax(x_j W_V W_O W_U),

over the distinct tokens t seen up to j, x_j the raw input embedding of the token at j. The share is the same
for any multiple of p, so the softmax's normaliser cancels and only the logits of seen tokens are needed:
a product over d_head, like a second attention pattern. `tests/oracle.py` has the loop over the vocabulary.

Where j = s, a head that attends to itself has an event whatever the relation; Ren counts these, the index does not.

Letters: B texts, T positions, L layers, H heads, U distinct tokens of a text, K d_head, R triplets (each in both
directions), P opportunities (one triplet at one j), E events, S gates, V variants of x_j, N the object and the
nulls, G groups (document, source, relation, direction).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sih.scores.layout import NULLS, Batch, Plan

if TYPE_CHECKING:
    from sih.models.model import Model

_GATHERED = 2**21  # how many logits are gathered for events at a time
# What is read at an event: the OV circuit on the embedding of the token at j [Ren Eq. 2], or on that of the token
# attended to, or the head's actual output at j. The first is the default, and its names below have no prefix.
VARIANTS = ("current", "attended", "contextual")


def gates(taus: Sequence[float]) -> list[str]:
    """Names of the gates. All but `ren` leave out events with j = s.

    `argmax`: attention from j is largest at s, of all positions [Ren]; on an exact tie, at the first of them.
    `ren`: the same with the events at j = s: Ren's definition. `own`: the largest among the text's own tokens, without
    the document start, which is an attention sink. `strict`: `argmax`, and attention at s over the next largest is
    above the first tau; `strict_{tau}`: above a further one.
    """
    return ["argmax", "ren", "own", "strict", *(f"strict_{tau:g}" for tau in taus[1:])]


def sums(taus: Sequence[float], variants: Sequence[str] = VARIANTS) -> list[str]:
    """What is summed for every (group, layer, head), in order.

    `{gate}_events`; then for each variant, with its name as a prefix unless it is `current`: `{gate}_scored` and
    `{gate}_sum` of each gate; and of each null, at the argmax gate's events that have it: `{null}_scored`,
    `{null}_sum`, and `{null}_object_sum`, the object's own shares at the same events.
    """
    parts = [f"{gate}_{what}" for gate in gates(taus) for what in ("scored", "sum")]
    parts += [f"{null}_{what}" for null in NULLS for what in ("scored", "sum", "object_sum")]
    return [*(f"{gate}_events" for gate in gates(taus)), *(prefix(v) + part for v in variants for part in parts)]


def prefix(variant: str) -> str:
    """The prefix of a variant's columns."""
    return "" if variant == VARIANTS[0] else f"{variant}_"


@dataclass(frozen=True)
class Measured:
    """The sums and the best heads of one checkpoint.

    sums_GLHS: float64, over events; the last axis in the order of `sums(taus, variants)`. `*_events` count a gate's
        events, `*_scored` those whose share is defined (some q above 0), `*_sum` add the shares, each in [0, 1].
        The index = argmax_sum / argmax_scored, NaN where that is 0 / 0.
    best_R: for each triplet the head, as layer * H + head, with the largest mean share (of the first variant) over its
        scored events at the argmax gate, -1 where no head has one above 0 [Ren §5]. best_null_R: the same for
        `null_random`.
    """

    sums_GLHS: np.ndarray
    best_R: np.ndarray
    best_null_R: np.ndarray


def measure(model: "Model", planned: Plan, taus: Sequence[float], variants: Sequence[str] = VARIANTS) -> Measured:
    """Every gate and null of the `variants` for every head, in one pass.

    While the layers run, nothing is copied from the device. After them the numbers of events are read, and all that a
    batch gives is copied at once.

    Args:
        model: the checkpoint.
        planned: from `plan`.
        taus: strict gates, which also need attention at s over the next largest > tau; the first is the main one.
    """
    n_groups, n_heads, n_triplets = len(planned.groups), model.n_heads, len(planned.triplets)
    n_gates, n_variants = len(gates(taus)), len(variants)
    factors = [model.ov_factors(layer, planned.corpus_ids_U) for layer in range(model.n_layers)]
    events: list[list[np.ndarray]] = [[] for _ in range(model.n_layers)]
    for batch in planned.batches:
        on_device = batch.to(model.device)
        looks: list[Looks] = []
        outs: list[torch.Tensor] = []

        def observe(
            layer: int,
            attn_BHTT: torch.Tensor,
            out_BTHK: torch.Tensor,
            looks: list[Looks] = looks,
            outs: list[torch.Tensor] = outs,
        ) -> None:
            looks.append(look(attn_BHTT, planned.begins))
            outs.append(out_BTHK)

        model.hidden(on_device.ids_BT, observe)
        for layer, packed_EX in enumerate(_of_batch(factors, looks, outs, on_device, n_heads, taus, variants)):
            events[layer].append(packed_EX)
    found, means = [], []
    for of_layer in events:
        packed_EX = np.concatenate(of_layer)
        cell_E, triplet_E = packed_EX[:, 0], packed_EX[:, 1]
        open_ES = packed_EX[:, 2 : 2 + n_gates].astype(bool)
        share_EVN = packed_EX[:, 2 + n_gates :].view(np.float32).reshape(len(packed_EX), n_variants, 1 + len(NULLS))
        found.append(_summed(n_groups * n_heads, cell_E, open_ES, share_EVN).reshape(n_groups, n_heads, -1))
        counts_E = open_ES[:, 0]
        means.append([_mean_of(n_triplets * n_heads, triplet_E[counts_E], share_EVN[counts_E, 0, n]) for n in (0, 2)])
    best = [
        _best(np.stack([m.reshape(n_triplets, n_heads) for m in of_layers], axis=1))
        for of_layers in zip(*means, strict=True)
    ]
    return Measured(np.stack(found, axis=1), *best)


@dataclass(frozen=True)
class Looks:
    """Where each head looks from each position, (B, H, T) each.

    `at`: the first position with the most attention, the document start left out. `top`: that attention. `sink`:
    attention to the document start, -1 without one. `rest`: the most attention anywhere but at `at`.
    """

    at_BHT: torch.Tensor
    top_BHT: torch.Tensor
    sink_BHT: torch.Tensor
    rest_BHT: torch.Tensor


def look(attn_BHTT: torch.Tensor, begins: bool) -> Looks:
    """`begins`: whether position 0 is the document start."""
    own_BHTT = attn_BHTT[..., int(begins) :]
    top_BHT, at_BHT = own_BHTT.max(-1)  # of equal ones the first
    sink_BHT = attn_BHTT[..., 0].clone() if begins else torch.full_like(top_BHT, -1.0)
    next_BHT = own_BHTT.scatter(-1, at_BHT[..., None], -1.0).amax(-1)
    return Looks(at_BHT + int(begins), top_BHT, sink_BHT, torch.maximum(next_BHT, sink_BHT))


def gate(looks: Looks, batch: Batch, taus: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """For every opportunity and head: whether s has the most attention of the text's own tokens, and the open gates.

    Returns:
        own_PH, and open_SPH in the order of `gates(taus)`. On an exact tie, which bfloat16 makes common, the first
        position has the most attention, and none is strict.
    """
    at = (batch.text_P, slice(None), batch.j_P)
    top_PH, rest_PH = looks.top_BHT[at], looks.rest_BHT[at]
    own_PH = looks.at_BHT[at] == batch.s_P[:, None]
    argmax_PH = own_PH & (top_PH > looks.sink_BHT[at])
    other_P1 = ~batch.self_P[:, None].bool()
    strict = [argmax_PH & other_P1 & (top_PH > tau * rest_PH) for tau in taus]
    return own_PH, torch.stack([argmax_PH & other_P1, argmax_PH, own_PH & other_P1, *strict])


def _of_batch(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]],
    looks: Sequence[Looks],
    outs: Sequence[torch.Tensor],
    batch: Batch,
    n_heads: int,
    taus: Sequence[float],
    variants: Sequence[str],
) -> list[np.ndarray]:
    """A batch's events, for each layer an int32 array (E, 2 + gates + variants * (1 + NULLS)).

    Columns: the cell of group and head, that of triplet and head, the open gates, and the bits of the float32 shares.
    All layers travel to the host together, in one array.
    """
    gated = [gate(of_layer, batch, taus) for of_layer in looks]
    at_E3 = torch.nonzero(torch.stack([own_PH for own_PH, _ in gated]))  # layer, opportunity, head
    counts = torch.bincount(at_E3[:, 0], minlength=len(looks)).tolist()
    packed = []
    for layer, (_, opportunity_E, head_E) in enumerate(x.T for x in at_E3.split(counts)):
        share_EVN = shares_of_events(*factors[layer], outs[layer], batch, head_E, opportunity_E, variants)
        cells = [index_P[opportunity_E] * n_heads + head_E for index_P in (batch.group_P, batch.triplet_P)]
        open_ES = gated[layer][1][:, opportunity_E, head_E].T
        whole = torch.cat([torch.stack(cells, dim=1).int(), open_ES.int()], dim=1)
        packed.append(torch.cat([whole, share_EVN.flatten(1).contiguous().view(torch.int32)], dim=1))
    return np.split(torch.cat(packed).cpu().numpy(), np.cumsum(counts)[:-1])


def shares_of_events(
    values_HUK: torch.Tensor,
    targets_HUK: torch.Tensor,
    out_BTHK: torch.Tensor,
    batch: Batch,
    head_E: torch.Tensor,
    opportunity_E: torch.Tensor,
    variants: Sequence[str] = VARIANTS,
) -> torch.Tensor:
    """The shares a of the object and of each null at each event, (E, variants, 1 + NULLS) [Ren Eq. 2-3].

    `out_BTHK` is each head's attention-weighted sum of values, before W_O. NaN where a share is undefined: no q
    above 0, or no such null.
    """
    logits = _logits(values_HUK, targets_HUK, out_BTHK, batch, variants)
    events = torch.arange(len(head_E), device=head_E.device)
    size = max(1, _GATHERED // (batch.distinct_BU.shape[1] * len(variants)))
    return torch.cat([_shares(logits, batch, head_E[part], opportunity_E[part]) for part in events.split(size)])


def _logits(
    values_HUK: torch.Tensor,
    targets_HUK: torch.Tensor,
    out_BTHK: torch.Tensor,
    batch: Batch,
    variants: Sequence[str],
) -> list[tuple[torch.Tensor, str]]:
    """For each variant the logits on a text's own distinct tokens, and the variant.

    (H, B, U, U) for `current` and `attended`, a row for each distinct token that is read; (H, B, T, U) for
    `contextual`, a row for each position. Computing all of them is less work than picking the targets of every event,
    since a text has fewer tokens than a head has events in it. Padding repeats a text's last token.
    """
    targets_HBKU = _of_texts(targets_HUK, batch).mT
    found = []
    embedded = None
    for variant in variants:
        if variant == "contextual":
            found.append((out_BTHK.permute(2, 0, 1, 3).float() @ targets_HBKU, variant))
        else:
            embedded = _of_texts(values_HUK, batch) @ targets_HBKU if embedded is None else embedded
            found.append((embedded, variant))
    return found


def _of_texts(factor_HUK: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The rows of each text's distinct tokens, (H, B, U, K); `index_select` copies rows whole, indexing by number."""
    return factor_HUK.index_select(1, batch.distinct_BU.flatten()).unflatten(1, batch.distinct_BU.shape)


def _shares(
    logits: list[tuple[torch.Tensor, str]], batch: Batch, head_E: torch.Tensor, opportunity_E: torch.Tensor
) -> torch.Tensor:
    text_E, j_E, s_E = (x[opportunity_E] for x in (batch.text_P, batch.j_P, batch.s_P))
    row_E = {
        "current": batch.local_BT[text_E, j_E],
        "attended": batch.local_BT[text_E, s_E],
        "contextual": j_E,
    }
    logits_EVU = torch.stack([of_all[head_E, text_E, row_E[variant]] for of_all, variant in logits], dim=1)
    seen_E = batch.seen_BT[text_E, j_E][:, None, None]
    hidden_EVU = torch.arange(logits_EVU.shape[2], device=logits_EVU.device) >= seen_E
    top_EV1 = logits_EVU.masked_fill(hidden_EVU, -torch.inf).amax(-1, keepdim=True)
    # A multiple of p, minus 1, which cancels in p - mean p: near initialisation p is 1 except for its last digits.
    p_EVU = torch.expm1(logits_EVU - top_EV1).masked_fill(hidden_EVU, 0.0)
    q_EVU = (p_EVU - p_EVU.sum(-1, keepdim=True) / seen_E).clamp_min(0).masked_fill(hidden_EVU, 0.0)
    total_EV1 = q_EVU.sum(-1, keepdim=True)
    targets = (batch.o_P, batch.fixed_P, batch.random_P, batch.matched_P)
    index_E1N = torch.stack([index_P[opportunity_E] for index_P in targets], dim=1)[:, None]
    share_EVN = q_EVU.gather(2, index_E1N.clamp_min(0).expand(-1, len(logits), -1)) / total_EV1
    return share_EVN.masked_fill((total_EV1 <= 0) | (index_E1N < 0), torch.nan)


def _summed(cells: int, cell_E: np.ndarray, open_ES: np.ndarray, share_EVN: np.ndarray) -> np.ndarray:
    """`sums` of every cell, (cells, sums); in float64 and in order, so that equal events give equal bytes."""

    def count(chosen_E: np.ndarray) -> np.ndarray:
        return np.bincount(cell_E[chosen_E], minlength=cells).astype(np.float64)

    def total(chosen_E: np.ndarray, v: int, n: int) -> np.ndarray:
        return np.bincount(cell_E[chosen_E], share_EVN[chosen_E, v, n].astype(np.float64), minlength=cells)

    columns = [count(open_E) for open_E in open_ES.T]
    for v in range(share_EVN.shape[1]):
        defined_EN = ~np.isnan(share_EVN[:, v])
        for open_E in open_ES.T:
            scored_E = open_E & defined_EN[:, 0]
            columns += [count(scored_E), total(scored_E, v, 0)]
        for n in range(1, share_EVN.shape[2]):
            paired_E = open_ES[:, 0] & defined_EN[:, n]
            columns += [count(paired_E), total(paired_E, v, n), total(paired_E, v, 0)]
    return np.stack(columns, axis=1)


def _mean_of(cells: int, cell_E: np.ndarray, share_E: np.ndarray) -> np.ndarray:
    """Mean of the defined shares of every cell, (cells,), 0 where there is none."""
    defined_E = ~np.isnan(share_E)
    cell_E, share_E = cell_E[defined_E], share_E[defined_E].astype(np.float64)
    return np.bincount(cell_E, share_E, minlength=cells) / np.maximum(np.bincount(cell_E, minlength=cells), 1)


def _best(mean_RLH: np.ndarray) -> np.ndarray:
    """layer * H + head of each triplet's largest mean, (R,); -1 where none is above 0."""
    flat_RH = mean_RLH.reshape(len(mean_RLH), -1)
    return np.where(flat_RH.max(1) > 0, flat_RH.argmax(1), -1)
