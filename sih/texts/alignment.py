"""Words to tokens by character offsets, with the model's own tokenizer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def align(
    tokenizer: "PreTrainedTokenizerFast", text: str, spans: list[tuple[int, int]]
) -> tuple[list[int], list[int | None]]:
    """Token ids of `text`, and for each character span (start, stop) the one token that is exactly it.

    A span has a token when a single token covers its characters and, white space aside, no others;
    otherwise None. No special tokens are added.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    by_span: dict[tuple[int, int], list[int]] = {}
    for t, (start, stop) in enumerate(encoded["offset_mapping"]):
        piece = text[start:stop]
        start += len(piece) - len(piece.lstrip())
        by_span.setdefault((start, max(start, start + len(piece.strip()))), []).append(t)
    tokens = [by_span.get(span, []) for span in spans]
    return list(encoded["input_ids"]), [found[0] if len(found) == 1 else None for found in tokens]
