"""Random token ids that are said twice: what can be predicted there, only the earlier occurrence tells."""

import numpy as np


def repeated(
    n_ids: int, sequences: int, length: int, start: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Sequences of distinct ids below `n_ids`, then the same again, after `start` if there is one: ids (B, T).

    Beside them how many ids are in one half: `length`, or fewer where there are not so many.
    """
    ids = np.array([i for i in range(n_ids) if i != start])
    half = min(length, len(ids))
    half_BT = np.stack([rng.choice(ids, half, replace=False) for _ in range(sequences)])
    begin = [] if start is None else [np.full((sequences, 1), start)]
    return np.concatenate([*begin, half_BT, half_BT], axis=1), half
