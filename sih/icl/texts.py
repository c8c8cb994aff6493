"""Long texts for the loss: plain text, JSON lines or Parquet, cut to one length."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from sih.errors import SihError

_TITLE = re.compile(r"(?m)^ = [^=].* = $")  # ` = Title = `: a new article of WikiText


def read(path: Path) -> list[str]:
    """The documents of a file.

    `.jsonl`: the `text` of every line. `.parquet`: the column `text`. Anything else is plain text: WikiText's
    articles where it has them, else one document.

    Raises:
        SihError: unreadable, malformed (file and line are named), or without text.
    """
    try:
        if path.suffix == ".jsonl":
            texts = [_line(line, path, n) for n, line in enumerate(path.read_text("utf-8").splitlines(), 1) if line]
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
    texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int, documents: int, source: str
) -> list[tuple[str, list[int]]]:
    """The first `length` token ids of up to `documents` texts that are long enough, as (name, ids).

    When fewer texts are long enough, each text gives as many pieces of `length` as fit, a piece a document.

    Raises:
        SihError: fewer than two pieces.
    """
    tokenised = [list(tokenizer(t.strip(), add_special_tokens=False)["input_ids"]) for t in texts]
    pieces = [(f"{source}-{i:04d}", ids[:length]) for i, ids in enumerate(tokenised) if len(ids) >= length]
    if len(pieces) < documents:
        pieces = [
            (f"{source}-{i:04d}-{k:03d}", ids[k * length : (k + 1) * length])
            for i, ids in enumerate(tokenised)
            for k in range(len(ids) // length)
        ]
    if len(pieces) < 2:
        raise SihError(f"{source}: {len(pieces)} texts of {length} tokens; expected at least 2 (icl.loss.texts)")
    return pieces[:documents]
