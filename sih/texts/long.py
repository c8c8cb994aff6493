"""Long texts for the loss: plain text, JSON lines or Parquet, cut to one length.

Letters: B texts, T positions, S positions of the short texts.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sih.errors import SihError
from sih.texts import wikitext
from sih.texts.beginning import begun
from sih.texts.datafiles import read_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sih.checkpoints.corpus import Document

HELD_OUT = "held-out"  # as the value of an option `texts`: documents of the embedded series
WIKITEXT = "wikitext2-raw-test.txt"  # without the option


def chosen(texts: str | None, file: Path | None, held_out: "Callable[[], list[Document]]") -> list[str]:
    """The texts that an option `texts` names: held-out documents, raw WikiText-2 (None), or a file of one's own."""
    if texts == HELD_OUT:
        return [" ".join(document.words) for document in held_out()]
    assert file is not None
    return wikitext.read(file) if texts is None else read(file)


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
            text = path.read_text("utf-8")
            texts = wikitext.articles(text) or [text]
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


def cut(
    texts: list[str], tokenizer: "PreTrainedTokenizerFast", length: int, documents: int, start: int | None
) -> list[tuple[str, list[int]]]:
    """Up to `documents` pieces of exactly `length` token ids, as (name of the text, ids).

    Every piece begins with the id `start`, if there is one, and so has one token less of its text. A text that begins
    with it already, as documents of the embedded series do, loses its own.

    The first piece of every text that is long enough, then every text's second piece, and so on, to use as many
    different texts as possible. Pieces of one text share its name, so that they are resampled together.

    Raises:
        SihError: pieces of fewer than two texts.
    """
    first = [] if start is None else [start]
    own = length - len(first)
    tokenised = [tokenizer(t.strip(), add_special_tokens=False)["input_ids"] for t in texts]
    tokenised = [list(begun(ids, start))[len(first) :] for ids in tokenised]
    pieces = [
        (f"text-{i:04d}", first + ids[k * own : (k + 1) * own])
        for k in range(max(len(ids) // own for ids in tokenised))
        for i, ids in enumerate(tokenised)
        if len(ids) >= (k + 1) * own
    ]
    if len({name for name, _ in pieces}) < 2:
        raise SihError(
            f"{len({n for n, _ in pieces})} of {len(texts)} texts have {own} tokens; "
            "expected at least 2 (icl.loss.texts)"
        )
    return pieces[:documents]


def short_texts(ids_BT: torch.Tensor, late: Sequence[int], start: int | None) -> tuple[torch.Tensor, range]:
    """Each text from a late place on, as a text of its own: ids (B, S), and its predictions of the late tokens.

    `late` is [late start, late stop, short start], predictions of the whole text. The short text has the tokens that
    predictions from `short start` on are scored on, after the id `start` if texts begin with one.
    """
    late_start, late_stop, short_start = late
    stretch_BS = ids_BT[:, short_start + 1 : late_stop + 1]
    if start is not None:
        stretch_BS = torch.cat([torch.full_like(stretch_BS[:, :1], start), stretch_BS], dim=1)
    first = late_start - short_start - (start is None)
    return stretch_BS, range(first, first + late_stop - late_start)
