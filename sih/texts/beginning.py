"""Texts begin as documents did in training, so that the first word is not also the attention sink."""

from collections.abc import Sequence


def begun(token_ids: Sequence[int], start: int | None) -> tuple[int, ...]:
    """The ids, after `start` unless they begin with it already or there is none."""
    ids = tuple(token_ids)
    return ids if start is None or ids[:1] == (start,) else (start, *ids)
