"""A gold treebank (CoNLL-U): subject, object and modifier dependencies, no parser and no parser noise."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sih.errors import SihError
from sih.texts.alignment import align
from sih.texts.datafiles import read_lines
from sih.texts.relations import Candidate, Example, Exclusions, checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SOURCE = "treebank"


def read(
    path: Path,
    relations: dict[str, list[str]],
    tokenizer: "PreTrainedTokenizerFast",
    max_tokens: int,
    out: Exclusions,
    source: str = SOURCE,
) -> list[Example]:
    """Every sentence with usable dependencies; governor = subject end, dependent = object end [Ren §3.1].

    `relations` maps our names to dependency labels. The words of a multiword token ("don't") have a place in
    the text only when their forms, put together, spell it. `# newdoc` starts a document; in a file without it,
    each sentence is its own document.

    Raises:
        SihError: a malformed line; file and line are named.
    """
    names = {label: name for name, labels in relations.items() for label in labels}
    document, examples = None, []
    for index, lines in enumerate(_blocks(path)):
        for _, line in lines:
            if line.startswith("# newdoc"):
                document = line.removeprefix("# newdoc id = ") if "=" in line else f"document-{index:05d}"
        text, spans, heads, labels = _sentence(lines, path)
        wanted = [i for i in spans if labels[i] in names and heads[i] in spans]
        ids, positions = align(tokenizer, text, [spans[k] or (-1, -1) for i in wanted for k in (heads[i], i)])
        ends = zip(wanted, positions[::2], positions[1::2], strict=True)
        candidates = [Candidate(names[labels[i]], s, o) for i, s, o in ends]
        example = checked(document or f"sentence-{index:05d}", source, ids, candidates, max_tokens, out)
        if example:
            examples.append(example)
    return examples


def _blocks(path: Path):
    """Sentences as lists of (line number, line)."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(read_lines(path), start=1):
        if line:
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _sentence(lines: list[tuple[int, str]], path: Path):
    """Text, and by word id: character span (None inside a multiword token it does not spell), head, label."""
    text = ""
    spans: dict[int, tuple[int, int] | None] = {}
    heads: dict[int, int] = {}
    labels: dict[int, str] = {}
    inside: dict[int, int] = {}  # words of the multiword token being read -> where they would start
    for number, line in lines:
        if line.startswith("#"):
            continue
        columns = line.split("\t")
        if len(columns) != 10:
            raise SihError(f"{path}, line {number}: {len(columns)} tab-separated columns; expected the 10 of CoNLL-U")
        number_, form, head, label, misc = columns[0], columns[1], columns[6], columns[7], columns[9]
        space = "" if "SpaceAfter=No" in misc.split("|") else " "
        if "." in number_:  # an empty node has no place in the text
            continue
        if re.fullmatch(r"\d+-\d+", number_):
            first, last = (int(x) for x in number_.split("-"))
            inside = dict.fromkeys(range(first, last + 1), -1)
            inside[first] = len(text)
            surface_stop = len(text) + len(form)
            text += form + space
            continue
        if not (number_.isdecimal() and head.isdecimal()):
            raise SihError(f"{path}, line {number}: word id {number_!r}, head {head!r}; expected whole numbers")
        word = int(number_)
        heads[word], labels[word] = int(head), label
        if word in inside:
            start = inside[word]
            fits = start >= 0 and text[start : start + len(form)] == form and start + len(form) <= surface_stop
            spans[word] = (start, start + len(form)) if fits else None
            if fits and word + 1 in inside:
                inside[word + 1] = start + len(form)
        else:
            spans[word] = (len(text), len(text) + len(form))
            text += form + space
    return text.rstrip(), spans, heads, labels
