"""AGENDA: abstracts with knowledge graphs; entities become single capital letters [Ren §3.2]."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from sih.config import AgendaConfig
from sih.datafiles import read_lines
from sih.errors import SihError
from sih.relations import Example, Exclusions, checked
from sih.relations.alignment import align

SOURCE = "agenda"
# By index in the data, as its authors list them.
RELATIONS = ("USED-FOR", "CONJUNCTION", "FEATURE-OF", "PART-OF", "COMPARE", "EVALUATE-FOR", "HYPONYM-OF")
_PLACEHOLDER = re.compile(r"<[a-z]+_(\d+)>")


def read(
    path: Path, config: AgendaConfig, tokenizer: PreTrainedTokenizerFast, max_tokens: int, seed: int, out: Exclusions
) -> list[Example]:
    """Every sentence with usable triplets, one example each; the abstract is its document.

    A sentence's entities get distinct letters, drawn anew for each sentence. A triplet is usable when both
    entities occur in the sentence, each exactly once and as one token.

    Raises:
        SihError: a line that is not six tab-separated columns with a valid graph; file and line are named.
    """
    dropped = set(config.function_words) if config.drop_function_words else set()
    examples = []
    for number, line in enumerate(read_lines(path), start=1):
        graph, text = _parse(line, path, number)
        sentences = _sentences(text.split())
        for triple in graph:
            if triple[0] == triple[2]:
                out.add(SOURCE, "both ends are the same entity")
            elif not any({triple[0], triple[2]} <= _entities(s).keys() for s in sentences):
                out.add(SOURCE, "the two ends share no sentence")
        for index, sentence in enumerate(sentences):
            counts = _entities(sentence)
            candidates = [t for t in graph if t[0] != t[2] and {t[0], t[2]} <= counts.keys()]
            usable = [t for t in candidates if counts[t[0]] == counts[t[2]] == 1]
            if len(usable) < len(candidates):
                out.add(SOURCE, "a letter occurs more than once in the sentence", len(candidates) - len(usable))
            if not usable:
                continue
            if len(counts) > len(config.letters):
                out.add(SOURCE, "more entities in the sentence than letters", len(usable))
                continue
            rng = np.random.default_rng([seed, number, index])
            letters = dict(zip(counts, rng.permutation(list(config.letters)), strict=False))
            words = [w for w in sentence if w not in dropped]
            text, spans = _written(words, letters)
            ids, positions = align(tokenizer, text, [spans[e] for t in usable for e in (t[0], t[2])])
            ends = zip(usable, positions[::2], positions[1::2], strict=True)
            example = checked(
                f"{SOURCE}-{number:04d}",
                SOURCE,
                ids,
                [(RELATIONS[r], s, o) for (_, r, _), s, o in ends],
                max_tokens,
                out,
            )
            if example:
                examples.append(example)
    return examples


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
    return Counter(int(m[1]) for w in words if (m := _PLACEHOLDER.fullmatch(w)))


def _written(words: list[str], letters: dict[int, str]) -> tuple[str, dict[int, tuple[int, int]]]:
    """The sentence with letters for entities, and the character span of each entity's (last) mention."""
    text, spans = "", {}
    for word in words:
        text += " " if text else ""
        match = _PLACEHOLDER.fullmatch(word)
        if match:
            spans[int(match[1])] = (len(text), len(text) + 1)
            word = letters[int(match[1])]
        text += word
    return text, spans
