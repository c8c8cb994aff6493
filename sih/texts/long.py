"""Long texts for the loss: plain text, JSON lines or Parquet, cut to one length."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from sih.errors import SihError
from sih.texts.datafiles import read_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TITLE = re.compile(r"(?m)^ = [^=].* = $")  # ` = Title = `: a new article of WikiText


def read(path: Path) -> list[str]:
    """The documents of a file.

    `.jsonl`: the `text` of every line. `.parquet`: the column `text`. Anything else is plain text: WikiText's
    articles if it has any, else one document.

    Raises:
        SihError: unreadable, malformed (file and line are named), or without text.
    """
    try:
        if path.suffix == ".jsonl":
            texts = [_line(line, path, n) for n, line in enumerate(read_lines(path), 1) if line]
        elif path.suffix == ".parquet":
            texts = [str(t) for t in pq.read_table(path, columns=["text"])["text"].to_pylist()]
        else:
            texts = _articles(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise SihError(f"{path}: cannot be read as texts ({error}); expected .txt, .jsonl or .parquet") from None
    if not any(texts):
        raise SihError(f"{path}: no texts in it")
    return texts


def _line(line: str, path: Path, number: int) -> str:
    try:
        return str(json.loads(line)["text"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise SihError(f'{path}, line {number}: expected a JSON object with a "text", got {line[:60]!r}') from None


def _articles(text: str) -> list[str]:
    starts = [m.start() for m in _TITLE.finditer(text)]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)] if starts else [text]


def cut(
    texts: list[str], tokenizer: "PreTrainedTokenizerFast", length: int, documents: int
) -> list[tuple[str, list[int]]]:
    """Up to `documents` pieces of exactly `length` token ids, as (name of the text, ids).

    The first piece of every text that is long enough, then every text's second piece, and so on, to use as many
    different texts as possible. Pieces of one text share its name, so that they are resampled together.

    Raises:
        SihError: pieces of fewer than two texts.
    """
    tokenised = [list(tokenizer(t.strip(), add_special_tokens=False)["input_ids"]) for t in texts]
    pieces = [
        (f"text-{i:04d}", ids[k * length : (k + 1) * length])
        for k in range(max(len(ids) // length for ids in tokenised))
        for i, ids in enumerate(tokenised)
        if len(ids) >= (k + 1) * length
    ]
    if len({name for name, _ in pieces}) < 2:
        raise SihError(
            f"{len({n for n, _ in pieces})} of {len(texts)} texts have {length} tokens; "
            "expected at least 2 (icl.loss.texts)"
        )
    return pieces[:documents]
