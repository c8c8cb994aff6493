"""The tokenizer that lies beside a checkpoint's weights."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sih.checkpoints.files import tokenizer_files
from sih.errors import CheckpointError, first_line
from sih.models.loading import shape_of

_PADDING = 1024


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights, or one folder up: tokenizer.json, or else GPT-2's vocab.json and merges.txt.

    Raises:
        CheckpointError: there is none, or it is unreadable.
    """
    file, *merges = tokenizer_files(folder)
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))  # tokenizers itself raises a bare Exception
        if merges:
            return PreTrainedTokenizerFast(tokenizer_object=_byte_level(whole, merges[0].read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: no readable tokenizer ({first_line(error)})") from None
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


def _byte_level(vocabulary: dict[str, int], merges: str) -> Tokenizer:
    """GPT-2's tokenizer from its two files. Raises ValueError for a merge that makes no token of the vocabulary."""
    pairs = []
    for line in merges.splitlines():
        if line and not line.startswith("#version"):
            left, _, right = line.partition(" ")
            if not {left, right, left + right} <= vocabulary.keys():
                raise ValueError(f"merges.txt merges {line!r}, which vocab.json does not have")
            pairs.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def checked_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, refused if it has ids without a row in the embedding.

    Raises:
        CheckpointError: no tokenizer, no readable config, more ids than rows, or far fewer: embeddings are padded
            by a thousand rows or 2 % at most in the families that are known.
    """
    tokenizer, rows = load_tokenizer(folder), shape_of(folder).vocabulary
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} ids, the weights {rows} embedding rows; "
            "expected the tokenizer that the model was trained with"
        )
    if rows - len(tokenizer) > max(_PADDING, rows // 50):
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} ids for {rows} embedding rows, more than padding explains; "
            "expected the tokenizer that the model was trained with"
        )
    return tokenizer


def start_id(tokenizer: PreTrainedTokenizerFast, token: str | None) -> int | None:
    """The id of the token that documents began with in training; None without one, or if the tokenizer lacks it."""
    return None if token is None else tokenizer.get_vocab().get(token)
