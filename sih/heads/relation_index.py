"""The relation index of Ren et al., for every head, exactly and without the vocabulary [Ren §3, Eq. 1-3].

For a triplet (subject at s, object at o) and every position j >= max(s, o), a head scores an *event* when
its attention from j is largest at s (the gate). The event's value is the share

    a = q_o / sum_t q_t,   q_t = max(0, p_t - mean p),   p = softmax(x_j W_V W_O W_U),

over the distinct tokens t seen up to j, x_j the raw input embedding of the token at j. The share is the same
for any multiple of p, so the softmax's normaliser cancels and only the logits of seen tokens are needed:
a product over d_head, like a second attention pattern. `tests/oracle.py` has the loop over the vocabulary.

Letters: B texts, T positions, L layers, H heads, U distinct tokens of a text, K d_head, P opportunities
(a triplet and direction, at one j), E events, G groups (document, source, relation, direction).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sih.model import Model
from sih.relations import Example

DIRECTIONS = ("forward", "reverse")  # (t_s, relation, t_o) and (t_o, relation, t_s) [Ren App. B]
FIXED_POSITION = 10  # 0-based; the object of Ren's baseline is whatever token stands there
# What is summed for every (group, layer, head), in this order.
SUMS = (
    "argmax_events",
    "argmax_scored",
    "argmax_sum",
    "strict_events",
    "strict_scored",
    "strict_sum",
    "null_fixed_scored",
    "null_fixed_sum",
    "null_random_scored",
    "null_random_sum",
)


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
    """Texts of like length, padded on the right, and their opportunities as flat arrays."""

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
    group_P: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device) for t in vars(self).values()))


@dataclass(frozen=True)
class Plan:
    """Everything about the examples that is the same at every checkpoint."""

    groups: list[Group]
    corpus_ids_U: torch.Tensor  # distinct token ids of all examples, increasing
    batches: list[Batch]


def plan(examples: Sequence[Example], seed: int, batch_tokens: int) -> Plan:
    """Lay out batches, opportunities and the seeded random nulls, once for all checkpoints.

    Every null is a token other than the event's object: `null_fixed` the token at position 10, undefined
    before that position and where that token is the object's; `null_random` a uniform draw from the other
    distinct tokens seen, undefined when there is none. A draw belongs to the example's place in `examples`,
    so it does not depend on how texts are batched.
    """
    corpus = torch.tensor(sorted({t for e in examples for t in e.token_ids}))
    groups: dict[tuple[str, str, str, str], int] = {}
    opportunities: list[int] = []
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
            for direction, (s, o) in zip(DIRECTIONS, (ends, ends[::-1]), strict=True):
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
                full = np.full_like
                rows.append(np.stack([j, full(j, s), full(j, target), fixed, random, full(j, g)]))
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
    return Plan([Group(*key, opportunities[g]) for key, g in groups.items()], corpus, batches)


def _batch(rows: list, corpus: torch.Tensor) -> Batch:
    width = max(len(local) for _, local, *_ in rows)
    distinct_width = max(len(distinct) for _, _, distinct, *_ in rows)

    def padded(arrays: list[np.ndarray], size: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.pad(a, (0, size - len(a)), mode="edge") for a in arrays]))

    text_P = np.concatenate([np.full(r[4].shape[1], b) for b, r in enumerate(rows)])
    j_P, s_P, o_P, fixed_P, random_P, group_P = np.concatenate([r[4] for r in rows], axis=1)
    return Batch(
        padded([np.array(r[0].token_ids) for r in rows], width),
        padded([r[1] for r in rows], width),
        torch.searchsorted(corpus, padded([r[2] for r in rows], distinct_width)),
        padded([r[3] for r in rows], width),
        *(torch.from_numpy(np.ascontiguousarray(a)) for a in (text_P, j_P, s_P, o_P, fixed_P, random_P, group_P)),
    )


def measure(model: Model, planned: Plan, tau: float) -> np.ndarray:
    """Sums over events for every group and head.

    Args:
        model: the checkpoint.
        planned: of `plan`.
        tau: strict gate, additionally attention at s over the next largest > tau.

    Returns:
        float64 (G, L, H, len(SUMS)). `*_events` count the gate's events, `*_scored` those whose share is
        defined (some q above 0), `*_sum` add the shares, each in [0, 1]. The nulls belong to the argmax
        gate's scored events where the null is defined. Relation index = argmax_sum / argmax_scored.
    """
    n_groups, n_heads = len(planned.groups), model.n_heads
    factors = [model.ov_factors(layer, planned.corpus_ids_U) for layer in range(model.n_layers)]
    events: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(model.n_layers)]
    for batch in planned.batches:
        on_device = batch.to(model.device)

        def observe(layer: int, attn_BHTT: torch.Tensor, batch: Batch = on_device) -> None:
            head_E, opportunity_E, strict_E = gate(attn_BHTT, batch, tau)
            shares = shares_of_events(*factors[layer], batch, head_E, opportunity_E)
            cell_E = batch.group_P[opportunity_E] * n_heads + head_E
            events[layer].append(tuple(x.cpu().numpy() for x in (cell_E, strict_E, *shares)))

        model.hidden(on_device.ids_BT, observe)
    sums = [
        _summed(n_groups * n_heads, *(np.concatenate(parts) for parts in zip(*layer, strict=True))) for layer in events
    ]
    return np.stack([s.reshape(n_groups, n_heads, len(SUMS)) for s in sums], axis=1)


def gate(attn_BHTT: torch.Tensor, batch: Batch, tau: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Events of the argmax gate: head, opportunity and whether the strict gate holds too, each (E,).

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
    return head_E, opportunity_E, at_s_PH[opportunity_E, head_E] > tau * next_E


def shares_of_events(
    values_HUK: torch.Tensor,
    targets_HUK: torch.Tensor,
    batch: Batch,
    head_E: torch.Tensor,
    opportunity_E: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The share a of the object, of the fixed null and of the random null at each event, each (E,) [Ren Eq. 2-3].

    NaN where it is undefined: no q above 0, or no such null.
    """
    text_E, j_E = batch.text_P[opportunity_E], batch.j_P[opportunity_E]
    token_BT = batch.distinct_BU.gather(1, batch.local_BT)
    # OV logits of the text's own tokens at each of its positions: as large as the attention pattern.
    logits_HBTU = values_HUK[:, token_BT] @ targets_HUK[:, batch.distinct_BU].mT
    logits_EU = logits_HBTU[head_E, text_E, j_E]
    seen_E = batch.seen_BT[text_E, j_E]
    visible_EU = torch.arange(logits_EU.shape[1], device=logits_EU.device) < seen_E[:, None]
    logits_EU = logits_EU.masked_fill(~visible_EU, -torch.inf)
    p_EU = torch.exp(logits_EU - logits_EU.amax(-1, keepdim=True))
    q_EU = (p_EU - p_EU.sum(-1, keepdim=True) / seen_E[:, None]).clamp_min(0)
    total_E = q_EU.sum(-1)

    def share(index_P: torch.Tensor) -> torch.Tensor:
        index_E = index_P[opportunity_E]
        a_E = q_EU.gather(1, index_E.clamp_min(0)[:, None])[:, 0] / total_E
        return torch.where((total_E > 0) & (index_E >= 0), a_E, torch.nan)

    return share(batch.o_P), share(batch.fixed_P), share(batch.random_P)


def _summed(
    cells: int, cell_E: np.ndarray, strict_E: np.ndarray, a_E: np.ndarray, fixed_E: np.ndarray, random_E: np.ndarray
) -> np.ndarray:
    """SUMS of every cell, (cells, len(SUMS)); added in float64 and in order, so the same events give the same bytes."""
    scored_E = ~np.isnan(a_E)

    def add(chosen_E: np.ndarray, weight_E: np.ndarray | None = None) -> np.ndarray:
        weights = None if weight_E is None else weight_E[chosen_E].astype(np.float64)
        return np.bincount(cell_E[chosen_E], weights, minlength=cells).astype(np.float64)

    fixed_defined_E, random_defined_E = ~np.isnan(fixed_E), ~np.isnan(random_E)
    columns = [
        add(np.ones_like(scored_E)),
        add(scored_E),
        add(scored_E, a_E),
        add(strict_E),
        add(strict_E & scored_E),
        add(strict_E & scored_E, a_E),
        add(fixed_defined_E),
        add(fixed_defined_E, fixed_E),
        add(random_defined_E),
        add(random_defined_E, random_E),
    ]
    return np.stack(columns, axis=1)
