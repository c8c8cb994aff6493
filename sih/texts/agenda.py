"""AGENDA: abstracts with knowledge graphs; entities become single capital letters [Ren §3.2]."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sih.config import AgendaConfig
from sih.errors import SihError
from sih.texts.alignment import align
from sih.texts.datafiles import read_lines
from sih.texts.relations import Candidate, Example, Exclusions, checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SOURCE, FULL = "agenda", "agenda-full"
# By index in the data, as its authors list them.
RELATIONS = ("USED-FOR", "CONJUNCTION", "FEATURE-OF", "PART-OF", "COMPARE", "EVALUATE-FOR", "HYPONYM-OF")
_PLACEHOLDER = re.compile(r"<([a-z]+)_(\d+)>")  # an entity's kind and number


def read(
    path: Path,
    config: AgendaConfig,
    drop_function_words: bool,
    tokenizer: "PreTrainedTokenizerFast",
    max_tokens: int,
    seed: int,
    out: Exclusions,
) -> list[Example]:
    """Every sentence with usable triplets, one example each; the abstract is its document.

    The source is `agenda`, or `agenda-full` where the function words stay; the same abstract is the same document
    in both. A sentence's entities get distinct letters, drawn anew for each sentence. A triplet is usable when
    both entities occur in the sentence, each exactly once and as one token.

    Raises:
        SihError: a line that is not six tab-separated columns with a valid graph; file and line are named.
    """
    source = SOURCE if drop_function_words else FULL
    dropped = set(config.function_words) if drop_function_words else set()
    examples = []
    for number, line in enumerate(read_lines(path), start=1):
        graph, text = _parse(line, path, number)
        sentences = _sentences(text.split())
        for triple in graph:
            if triple[0] == triple[2]:
                out.add(source, "both ends are the same entity")
            elif not any({triple[0], triple[2]} <= _entities(s).keys() for s in sentences):
                out.add(source, "the two ends share no sentence")
        for index, sentence in enumerate(sentences):
            counts = _entities(sentence)
            candidates = [t for t in graph if t[0] != t[2] and {t[0], t[2]} <= counts.keys()]
            usable = [t for t in candidates if counts[t[0]] == counts[t[2]] == 1]
            if len(usable) < len(candidates):
                out.add(source, "a letter occurs more than once in the sentence", len(candidates) - len(usable))
            if not usable:
                continue
            if len(counts) > len(config.letters):
                out.add(source, "more entities in the sentence than letters", len(usable))
                continue
            rng = np.random.default_rng([seed, number, index])
            letters = dict(zip(counts, rng.permutation(list(config.letters)), strict=False))
            kinds = {int(m[2]): m[1] for w in sentence if (m := _PLACEHOLDER.fullmatch(w))}
            words = [w for w in sentence if w not in dropped]
            text, spans = _written(words, letters)
            ids, positions = align(tokenizer, text, list(spans.values()))
            at = dict(zip(spans, positions, strict=True))
            example = checked(
                f"{SOURCE}-{number:04d}",
                source,
                ids,
                [_candidate(t, at, kinds) for t in usable],
                max_tokens,
                out,
            )
            if example:
                examples.append(example)
    return examples


def entities(path: Path) -> list[str]:
    """All different entities of the abstracts, in order of first mention, as they are written.

    Raises:
        SihError: a line that is not six tab-separated columns with a valid graph; file and line are named.
    """
    found: dict[str, None] = {}
    for number, line in enumerate(read_lines(path), start=1):
        _parse(line, path, number)
        found |= dict.fromkeys(filter(None, map(str.strip, line.split("\t")[1].split(" ; "))))
    return list(found)


def _candidate(triple: tuple[int, int, int], at: dict[int, int | None], kinds: dict[int, str]) -> Candidate:
    """A triple at its places, with the other entities of each end's kind in the same sentence."""
    first, relation, last = triple

    def like(end: int) -> tuple[int, ...]:
        others = (place for e, place in at.items() if kinds[e] == kinds[end] and e not in (first, last))
        return tuple(place for place in others if place is not None)

    return Candidate(RELATIONS[relation], at[first], at[last], like(first), like(last))


def _parse(line: str, path: Path, number: int) -> tuple[list[tuple[int, int, int]], str]:
    where = f"{path}, line {number}"
    columns = line.split("\t")
    if len(columns) != 6:
        raise SihError(
            f"{where}: {len(columns)} tab-separated columns; expected 6 (title, entities, types, graph, text, order)"
        )
    graph = []
    for triple in filter(str.strip, columns[3].split(";")):
        numbers = triple.split()
        if len(numbers) != 3 or not all(n.isdecimal() for n in numbers) or int(numbers[1]) >= len(RELATIONS):
            raise SihError(f"{where}: graph entry {triple.strip()!r}; expected 'entity relation entity', relation 0-6")
        graph.append((int(numbers[0]), int(numbers[1]), int(numbers[2])))
    return graph, columns[4]


def _sentences(words: list[str]) -> list[list[str]]:
    sentences: list[list[str]] = [[]]
    for word in words:
        sentences[-1].append(word)
        if word in (".", "?", "!"):
            sentences.append([])
    return [s for s in sentences if s]


def _entities(words: list[str]) -> Counter[int]:
    """Entities by how often they occur, in order of first mention."""
    return Counter(int(m[2]) for w in words if (m := _PLACEHOLDER.fullmatch(w)))


def _written(words: list[str], letters: dict[int, str]) -> tuple[str, dict[int, tuple[int, int]]]:
    """The sentence with letters for entities, and the character span of each entity's first mention."""
    text, spans = "", dict[int, tuple[int, int]]()
    for word in words:
        text += " " if text else ""
        match = _PLACEHOLDER.fullmatch(word)
        if match:
            spans.setdefault(int(match[2]), (len(text), len(text) + 1))
            word = letters[int(match[2])]
        text += word
    return text, spans
