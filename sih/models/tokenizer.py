"""The tokenizer that lies beside a checkpoint's weights."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from sih.checkpoints.files import tokenizer_file
from sih.errors import CheckpointError, first_line
from sih.models.loading import shape_of


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights, or one folder up.

    Raises:
        CheckpointError: there is none.
    """
    file = tokenizer_file(folder)
    try:
        json.loads(file.read_text(encoding="utf-8"))  # tokenizers itself raises a bare Exception
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: no readable tokenizer ({first_line(error)})") from None
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


def checked_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, refused if it has ids without a row in the embedding.

    Raises:
        CheckpointError: no tokenizer, no readable config, or more ids than rows.
    """
    tokenizer, rows = load_tokenizer(folder), shape_of(folder).vocabulary
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} ids, the weights {rows} embedding rows; "
            "expected the tokenizer that the model was trained with"
        )
    return tokenizer


def start_id(tokenizer: PreTrainedTokenizerFast, token: str | None) -> int | None:
    """The id of the token that documents began with in training; None without one, or if the tokenizer lacks it."""
    return None if token is None else tokenizer.get_vocab().get(token)
