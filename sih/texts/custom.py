"""Your own texts: gold dependencies (.conllu), character spans (.jsonl), or plain text that spaCy parses (.txt)."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sih.config import CustomConfig
from sih.errors import SihError
from sih.texts import treebank
from sih.texts.alignment import align
from sih.texts.datafiles import read_lines
from sih.texts.relations import Candidate, Example, Exclusions, checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SOURCE = "custom"
_EXPECTED = (
    'expected {"text": "...", "triplets": [{"relation": "...", "subject": [start, stop], "object": [start, stop]}]} '
    'with 0-based character positions, and "document" where texts belong together'
)
# document, text, and its triplets as relation, subject span, object span
Spans = tuple[str, str, list[tuple[str, tuple[int, int], tuple[int, int]]]]


def read(
    path: Path, config: CustomConfig, tokenizer: "PreTrainedTokenizerFast", max_tokens: int, out: Exclusions
) -> list[Example]:
    """Every text with usable triplets.

    Raises:
        SihError: a malformed line (file and line are named), or spaCy or the requested model is not installed.
    """
    if path.suffix == ".conllu":
        return treebank.read(path, config.relations, tokenizer, max_tokens, out, SOURCE)
    examples = []
    for document, text, triplets in _spans(path) if path.suffix == ".jsonl" else _parsed(path, config):
        ids, positions = align(tokenizer, text, [span for _, *ends in triplets for span in ends])
        ends = zip(triplets, positions[::2], positions[1::2], strict=True)
        candidates = [Candidate(relation, s, o) for (relation, _, _), s, o in ends]
        if example := checked(document, SOURCE, ids, candidates, max_tokens, out):
            examples.append(example)
    return examples


def _spans(path: Path) -> Iterator[Spans]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            text = row["text"]
            triplets = [(str(t["relation"]), tuple(t["subject"]), tuple(t["object"])) for t in row["triplets"]]
        except (ValueError, TypeError, KeyError):
            raise SihError(f"{where}: not an object of this form; {_EXPECTED}") from None
        for relation, *ends in triplets:
            for span in ends:
                whole = len(span) == 2 and all(type(x) is int for x in span)
                if not (whole and 0 <= span[0] < span[1] <= len(text)):
                    raise SihError(
                        f"{where}: {relation} has the span {list(span)} of {len(text)} characters; {_EXPECTED}"
                    )
        yield str(row.get("document", f"line-{number:05d}")), text, triplets


def _parsed(path: Path, config: CustomConfig) -> Iterator[Spans]:
    """Every sentence of every line; a line is a document."""
    names = {label: name for name, labels in config.relations.items() for label in labels}
    parse = _parser(config.spacy_model)
    for number, line in enumerate(read_lines(path), start=1):
        for sentence in parse(line).sents if line.strip() else []:
            begin = sentence.start_char
            triplets = [
                (names[word.dep_], _place(word.head, begin), _place(word, begin))
                for word in sentence
                if word.dep_ in names and word.head is not word
            ]
            yield f"line-{number:05d}", sentence.text, triplets


def _place(word: Any, begin: int) -> tuple[int, int]:
    return word.idx - begin, word.idx - begin + len(word.text)


def _parser(name: str) -> Any:
    try:
        spacy = importlib.import_module("spacy")
    except ImportError:
        raise SihError(
            "relations.custom.path is plain text, which spaCy parses, and spaCy is not installed: "
            f"pip install spacy, then python -m spacy download {name}; or give a .conllu or .jsonl file"
        ) from None
    try:
        return spacy.load(name)
    except OSError:
        raise SihError(
            f"the spaCy model {name} is not installed: python -m spacy download {name}, "
            "or name another with relations.custom.spacy_model"
        ) from None
