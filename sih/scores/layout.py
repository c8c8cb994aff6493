"""Opportunities of a relation: every triplet at every position from which a head may look, laid out in batches.

All of it is the same at every checkpoint. Letters: as in events.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sih.texts.relations import Example

DIRECTIONS = ("forward", "reverse")  # (t_s, relation, t_o) and (t_o, relation, t_s) [Ren App. B]
FIXED_POSITION = 10  # among a text's own tokens, 0-based; the object of Ren's baseline is whatever stands there
# Tokens that stand in for the object at the same events: see `plan`.
NULLS = ("null_fixed", "null_random", "null_matched")


@dataclass(frozen=True)
class Group:
    """What events are pooled over, before anything is averaged. `opportunities` counts (triplet, j) with j != s."""

    document: str
    source: str
    relation: str
    direction: str
    opportunities: int
    self_opportunities: int


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
    self_P: torch.Tensor  # whether j = s

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device) for t in vars(self).values()))


@dataclass(frozen=True)
class Plan:
    """Everything about the examples that is the same at every checkpoint."""

    groups: list[Group]
    triplets: list[tuple[str, str, str]]  # source, relation and direction of each triplet
    corpus_ids_U: torch.Tensor  # distinct token ids of all examples, increasing
    batches: list[Batch]
    begins: bool  # whether position 0 of every text is the document start


def plan(examples: Sequence[Example], seed: int, batch_tokens: int) -> Plan:
    """Lay out batches, opportunities and the seeded random nulls, once for all checkpoints.

    Every null is a token other than the event's object and the document start. `null_fixed`: the token at position 10,
    undefined before that position and where that token is the object's. `null_random`: a uniform draw from the other
    distinct tokens seen, undefined when there is none. `null_matched`: a uniform draw from the entities of the
    object's kind that are seen and are neither end, undefined when there is none or the data name no kinds.
    A draw belongs to the example's place in `examples`, so it does not depend on how texts are batched.
    """
    corpus = torch.tensor(sorted({t for e in examples for t in e.token_ids}))
    groups: dict[tuple[str, str, str, str], int] = {}
    opportunities: list[list[int]] = []  # of each group: with j != s, and with j = s
    begins = all(example.begins for example in examples)
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
                    opportunities.append([0, 0])
                to_self = int((j == s).sum())
                opportunities[g][0] += len(j) - to_self
                opportunities[g][1] += to_self
                target = local[o]
                place_of_fixed = FIXED_POSITION + example.begins
                at_fixed = local[min(place_of_fixed, len(ids) - 1)]
                fixed = np.where((j >= place_of_fixed) & (at_fixed != target), at_fixed, -1)
                others = seen[j] - 1 - example.begins  # the object itself is always among the tokens seen
                draw = example.begins + np.floor(rng.random(len(j)) * others).astype(np.int64)
                random = np.where(others > 0, draw + (draw >= target), -1)
                matched = _drawn_among(np.array(sorted(like), dtype=np.int64), local, j, rng)
                full = np.full_like
                flat = [j, full(j, s), full(j, target), fixed, random, matched, full(j, g), full(j, len(triplets))]
                rows.append(np.stack([*flat, j == s]))
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
    counted = [Group(*key, *opportunities[g]) for key, g in groups.items()]
    return Plan(counted, triplets, corpus, batches, begins)


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
