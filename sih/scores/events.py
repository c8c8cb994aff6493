"""Events of a relation for every head, exactly and without the vocabulary [Ren §3, Eq. 1-3].

For a triplet (subject at s, object at o) and every position j >= max(s, o), a head scores an *event* when
its attention from j is largest at s (the gate). The event's value is the share

    a = q_o / sum_t q_t,   q_t = max(0, p_t - mean p),   p = softmax(x_j W_V W_O W_U),

over the distinct tokens t seen up to j, x_j the raw input embedding of the token at j. The share is the same
for any multiple of p, so the softmax's normaliser cancels and only the logits of seen tokens are needed:
a product over d_head, like a second attention pattern. `tests/oracle.py` has the loop over the vocabulary.

Letters: B texts, T positions, L layers, H heads, U distinct tokens of a text, K d_head, R triplets (each in both
directions), P opportunities (one triplet at one j), E events, S strict gates, V variants of x_j, N the object and the
nulls, G groups (document, source, relation, direction).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sih.texts.relations import Example

if TYPE_CHECKING:
    from sih.models.gpt_neox import Model

DIRECTIONS = ("forward", "reverse")  # (t_s, relation, t_o) and (t_o, relation, t_s) [Ren App. B]
_GATHERED = 2**21  # how many logits are gathered for events at a time
FIXED_POSITION = 10  # 0-based; the object of Ren's baseline is whatever token stands there
# What is read at an event: the OV circuit on the embedding of the token at j [Ren Eq. 2], or on that of the token
# attended to, or the head's actual output at j. The first is the default, and its names below have no prefix.
VARIANTS = ("current", "attended", "contextual")
# Tokens that stand in for the object at the same events: see `plan`.
NULLS = ("null_fixed", "null_random", "null_matched")


def gates(taus: Sequence[float]) -> list[str]:
    """Names of the gates: argmax, strict (at the first tau), and strict at each further tau."""
    return ["argmax", "strict", *(f"strict_{tau:g}" for tau in taus[1:])]


def sums(taus: Sequence[float], variants: Sequence[str] = VARIANTS) -> list[str]:
    """What is summed for every (group, layer, head), in order.

    `{gate}_events`; then for each variant, with its name as a prefix unless it is `current`: `{gate}_scored` and
    `{gate}_sum` of each gate, and `{null}_scored` and `{null}_sum` of each null, at the argmax gate's events.
    """
    pairs = [*gates(taus), *NULLS]
    return [
        *(f"{gate}_events" for gate in gates(taus)),
        *(f"{prefix(v)}{name}_{what}" for v in variants for name in pairs for what in ("scored", "sum")),
    ]


def prefix(variant: str) -> str:
    """The prefix of a variant's columns."""
    return "" if variant == VARIANTS[0] else f"{variant}_"


@dataclass(frozen=True)
class Group:
    """What events are pooled over, before anything is averaged. `opportunities` counts (triplet, j)."""

    document: str
    source: str
    relation: str
    direction: str
    opportunities: int


@dataclass(frozen=True)
class Batch:
    """Texts of similar length, padded on the right, and their opportunities as flat arrays."""

    ids_BT: torch.Tensor
    local_BT: torch.Tensor  # each token's index among its text's distinct tokens
    distinct_BU: torch.Tensor  # index into the corpus's distinct tokens, in order of first appearance
    seen_BT: torch.Tensor  # how many distinct tokens are seen up to each position: always a prefix of U
    text_P: torch.Tensor
    j_P: torch.Tensor
    s_P: torch.Tensor
    o_P: torch.Tensor  # the object, and the nulls, as indices among the text's distinct tokens
    fixed_P: torch.Tensor  # -1 where the null is undefined
    random_P: torch.Tensor
    matched_P: torch.Tensor
    group_P: torch.Tensor
    triplet_P: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device) for t in vars(self).values()))


@dataclass(frozen=True)
class Plan:
    """Everything about the examples that is the same at every checkpoint."""

    groups: list[Group]
    triplets: list[tuple[str, str, str]]  # source, relation and direction of each triplet
    corpus_ids_U: torch.Tensor  # distinct token ids of all examples, increasing
    batches: list[Batch]


def plan(examples: Sequence[Example], seed: int, batch_tokens: int) -> Plan:
    """Lay out batches, opportunities and the seeded random nulls, once for all checkpoints.

    Every null is a token other than the event's object. `null_fixed`: the token at position 10, undefined
    before that position and where that token is the object's. `null_random`: a uniform draw from the other
    distinct tokens seen, undefined when there is none. `null_matched`: a uniform draw from the entities of the
    object's kind that are seen and are neither end, undefined when there is none or the data name no kinds.
    A draw belongs to the example's place in `examples`, so it does not depend on how texts are batched.
    """
    corpus = torch.tensor(sorted({t for e in examples for t in e.token_ids}))
    groups: dict[tuple[str, str, str, str], int] = {}
    opportunities: list[int] = []
    triplets: list[tuple[str, str, str]] = []
    prepared: list[tuple[Example, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for place, example in enumerate(examples):
        ids = np.array(example.token_ids)
        distinct, first, local = np.unique(ids, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        local, distinct = rank[local], distinct[order]
        seen = np.maximum.accumulate(local) + 1
        rng = np.random.default_rng([seed, place])
        rows = []
        for triplet in example.triplets:
            ends = (triplet.subject, triplet.object)
            alike = (triplet.like_object, triplet.like_subject)
            for direction, (s, o), like in zip(DIRECTIONS, (ends, ends[::-1]), alike, strict=True):
                key = (example.document, example.source, triplet.relation, direction)
                g = groups.setdefault(key, len(groups))
                j = np.arange(max(ends), len(ids))
                if g == len(opportunities):
                    opportunities.append(0)
                opportunities[g] += len(j)
                target = local[o]
                fixed = np.where(
                    (j >= FIXED_POSITION) & (local[min(FIXED_POSITION, len(ids) - 1)] != target),
                    local[min(FIXED_POSITION, len(ids) - 1)],
                    -1,
                )
                others = seen[j] - 1  # the object itself is always among the tokens seen
                draw = np.floor(rng.random(len(j)) * others).astype(np.int64)
                random = np.where(others > 0, draw + (draw >= target), -1)
                matched = _drawn_among(np.array(sorted(like), dtype=np.int64), local, j, rng)
                full = np.full_like
                flat = [j, full(j, s), full(j, target), fixed, random, matched, full(j, g), full(j, len(triplets))]
                rows.append(np.stack(flat))
                triplets.append((example.source, triplet.relation, direction))
        prepared.append((example, local, distinct, seen, np.concatenate(rows, axis=1)))
    by_length = sorted(range(len(prepared)), key=lambda i: (len(prepared[i][1]), i))
    batches: list[Batch] = []
    pending: list[int] = []
    for i in by_length:
        if pending and (len(pending) + 1) * len(prepared[i][1]) > batch_tokens:
            batches.append(_batch([prepared[k] for k in pending], corpus))
            pending = []
        pending.append(i)
    if pending:
        batches.append(_batch([prepared[k] for k in pending], corpus))
    return Plan([Group(*key, opportunities[g]) for key, g in groups.items()], triplets, corpus, batches)


def _drawn_among(places: np.ndarray, local: np.ndarray, j: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each j the distinct token at one of the increasing `places` up to j, uniformly; -1 when there is none."""
    draw = rng.random(len(j))
    if not len(places):
        return np.full_like(j, -1)
    seen = np.searchsorted(places, j, side="right")
    return np.where(seen > 0, local[places[np.floor(draw * seen).astype(np.int64)]], -1)


def _batch(rows: list, corpus: torch.Tensor) -> Batch:
    width = max(len(local) for _, local, *_ in rows)
    distinct_width = max(len(distinct) for _, _, distinct, *_ in rows)

    def padded(arrays: list[np.ndarray], size: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.pad(a, (0, size - len(a)), mode="edge") for a in arrays]))

    text_P = np.concatenate([np.full(r[4].shape[1], b) for b, r in enumerate(rows)])
    flat = np.concatenate([r[4] for r in rows], axis=1)
    return Batch(
        padded([np.array(r[0].token_ids) for r in rows], width),
        padded([r[1] for r in rows], width),
        torch.searchsorted(corpus, padded([r[2] for r in rows], distinct_width)),
        padded([r[3] for r in rows], width),
        *(torch.from_numpy(np.ascontiguousarray(a)) for a in (text_P, *flat)),
    )


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

    Args:
        model: the checkpoint.
        planned: from `plan`.
        taus: strict gates, which also need attention at s over the next largest > tau; the first is the main one.
    """
    n_groups, n_heads, n_triplets = len(planned.groups), model.n_heads, len(planned.triplets)
    factors = [model.ov_factors(layer, planned.corpus_ids_U) for layer in range(model.n_layers)]
    events: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(model.n_layers)]
    for batch in planned.batches:
        on_device = batch.to(model.device)

        def observe(layer: int, attn_BHTT: torch.Tensor, out_BTHK: torch.Tensor, batch: Batch = on_device) -> None:
            head_E, opportunity_E, strict_ES = gate(attn_BHTT, batch, taus)
            share_EVN = shares_of_events(*factors[layer], out_BTHK, batch, head_E, opportunity_E, variants)
            cells = (index_P[opportunity_E] * n_heads + head_E for index_P in (batch.group_P, batch.triplet_P))
            events[layer].append(tuple(x.cpu().numpy() for x in (*cells, strict_ES, share_EVN)))

        model.hidden(on_device.ids_BT, observe)
    found, means = [], []
    for layer_events in events:
        cell_E, triplet_E, strict_ES, share_EVN = (np.concatenate(parts) for parts in zip(*layer_events, strict=True))
        found.append(_summed(n_groups * n_heads, cell_E, strict_ES, share_EVN).reshape(n_groups, n_heads, -1))
        means.append([_mean_of(n_triplets * n_heads, triplet_E, share_EVN[:, 0, n]) for n in (0, 2)])
    best = [
        _best(np.stack([m.reshape(n_triplets, n_heads) for m in of_layers], axis=1))
        for of_layers in zip(*means, strict=True)
    ]
    return Measured(np.stack(found, axis=1), *best)


def gate(
    attn_BHTT: torch.Tensor, batch: Batch, taus: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Events of the argmax gate: head (E,), opportunity (E,), and whether each strict gate holds too (E, taus).

    The subject qualifies when it is the first position with the most attention: on an exact tie, which
    bfloat16 makes common, one position does and none is strict.
    """
    at_s_PH = attn_BHTT[batch.text_P, :, batch.j_P, batch.s_P]
    top_PH = attn_BHTT.amax(-1).transpose(1, 2)[batch.text_P, batch.j_P]
    opportunity_E, head_E = torch.nonzero(at_s_PH == top_PH, as_tuple=True)
    rows_ET = attn_BHTT[batch.text_P[opportunity_E], head_E, batch.j_P[opportunity_E]]
    position_T = torch.arange(rows_ET.shape[1], device=rows_ET.device)
    earlier_ET = position_T < batch.s_P[opportunity_E, None]
    first_E = ~((rows_ET == rows_ET.amax(-1, keepdim=True)) & earlier_ET).any(-1)
    opportunity_E, head_E, rows_ET = opportunity_E[first_E], head_E[first_E], rows_ET[first_E]
    next_E = rows_ET.scatter(1, batch.s_P[opportunity_E, None], 0.0).amax(-1)
    at_s_E = at_s_PH[opportunity_E, head_E]
    return head_E, opportunity_E, torch.stack([at_s_E > tau * next_E for tau in taus], dim=1)


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
    targets_HBKU = targets_HUK[:, batch.distinct_BU].mT
    found = []
    embedded = None
    for variant in variants:
        if variant == "contextual":
            found.append((out_BTHK.permute(2, 0, 1, 3).float() @ targets_HBKU, variant))
        else:
            embedded = values_HUK[:, batch.distinct_BU] @ targets_HBKU if embedded is None else embedded
            found.append((embedded, variant))
    return found


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


def _summed(cells: int, cell_E: np.ndarray, strict_ES: np.ndarray, share_EVN: np.ndarray) -> np.ndarray:
    """`sums` of every cell, (cells, sums); in float64 and in order, so that equal events give equal bytes."""

    def count(chosen_E: np.ndarray | slice) -> np.ndarray:
        return np.bincount(cell_E[chosen_E], minlength=cells).astype(np.float64)

    columns = [count(slice(None)), *(count(strict_E) for strict_E in strict_ES.T)]
    for v in range(share_EVN.shape[1]):
        scored_E = ~np.isnan(share_EVN[:, v, 0])
        wanted = [(scored_E, 0), *((scored_E & strict_E, 0) for strict_E in strict_ES.T)]
        wanted += [(~np.isnan(share_EVN[:, v, n]), n) for n in range(1, share_EVN.shape[2])]
        for chosen_E, n in wanted:
            weight = share_EVN[chosen_E, v, n].astype(np.float64)
            columns += [count(chosen_E), np.bincount(cell_E[chosen_E], weight, minlength=cells)]
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
