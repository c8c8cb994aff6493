"""Texts with relation triplets, as token ids and positions: what the relation index is measured on."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from sih.errors import SihError
from sih.texts.beginning import begun


@dataclass(frozen=True)
class Triplet:
    """(t_s, relation, t_o): 0-based token positions of the subject end and the object end.

    `like_subject` and `like_object` are the positions of other entities of that end's kind, none of them an end of
    this triplet; empty when the data name no kinds.
    """

    relation: str
    subject: int
    object: int
    like_subject: tuple[int, ...] = ()
    like_object: tuple[int, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A triplet as the data give it; a position is None when that end is not exactly one token."""

    relation: str
    subject: int | None
    object: int | None
    like_subject: tuple[int, ...] = ()
    like_object: tuple[int, ...] = ()


@dataclass(frozen=True)
class Example:
    """One text. Texts of the same `document` are resampled together.

    `begins`: whether position 0 is the document start, which is never an end of a triplet.
    """

    document: str
    source: str
    token_ids: tuple[int, ...]
    triplets: tuple[Triplet, ...]
    begins: bool = False


@dataclass
class Exclusions:
    """How many candidate triplets (or texts) were dropped, by source and reason."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, source: str, reason: str, count: int = 1) -> None:
        if count:
            self.counts[source, reason] += count

    def rows(self) -> list[tuple[str, str, int]]:
        return [(source, reason, n) for (source, reason), n in sorted(self.counts.items())]


def checked(
    document: str,
    source: str,
    token_ids: Iterable[int],
    candidates: Iterable[Candidate],
    max_tokens: int,
    exclusions: Exclusions,
) -> Example | None:
    """An example with the usable candidates, None when there are none. What is dropped is counted by reason."""
    ids = tuple(token_ids)
    candidates = list(candidates)
    if len(ids) > max_tokens:
        exclusions.add(source, f"text longer than {max_tokens} tokens", len(candidates))
        return None
    triplets: list[Triplet] = []
    for c in candidates:
        if c.subject is None or c.object is None:
            exclusions.add(source, "an end is not exactly one token")
        elif ids[c.subject] == ids[c.object]:
            exclusions.add(source, "both ends are the same token")
        elif any((c.relation, c.subject, c.object) == (t.relation, t.subject, t.object) for t in triplets):
            exclusions.add(source, "the same triplet again")
        else:
            triplets.append(Triplet(c.relation, c.subject, c.object, c.like_subject, c.like_object))
    return Example(document, source, ids, tuple(triplets)) if triplets else None


def begun_example(example: Example, start: int | None) -> Example:
    """The example as documents began in training: after `start`, unless that is None or there already."""
    ids = begun(example.token_ids, start)
    moved = len(ids) - len(example.token_ids)

    def at(positions: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(p + moved for p in positions)

    triplets = tuple(
        Triplet(t.relation, t.subject + moved, t.object + moved, at(t.like_subject), at(t.like_object))
        for t in example.triplets
    )
    return Example(example.document, example.source, ids, triplets, begins=start is not None)


def balanced(examples: list[Example], per_relation: int, seed: int, exclusions: Exclusions) -> list[Example]:
    """A seeded draw of at most `per_relation` triplets of each (source, relation), in the examples' order.

    Raises:
        SihError: there is nothing to draw from.
    """
    pools: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for e, example in enumerate(examples):
        for t, triplet in enumerate(example.triplets):
            pools.setdefault((example.source, triplet.relation), []).append((e, t))
    if not pools:
        raise SihError(
            "no usable relation triplets are left; counted by reason: "
            + ("; ".join(f"{s}: {r} ({n})" for s, r, n in exclusions.rows()) or "the data held none at all")
        )
    drawn: set[tuple[int, int]] = set()
    for (source, relation), pool in sorted(pools.items()):
        rng = np.random.default_rng([seed, *f"{source}/{relation}".encode()])
        drawn |= {pool[i] for i in rng.permutation(len(pool))[:per_relation]}
        if len(pool) > per_relation:
            exclusions.add(source, "usable, but beyond relations.per_relation", len(pool) - per_relation)
    kept = []
    for e, example in enumerate(examples):
        triplets = tuple(x for t, x in enumerate(example.triplets) if (e, t) in drawn)
        if triplets:
            kept.append(replace(example, triplets=triplets))
    return kept
