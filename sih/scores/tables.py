"""Rows of scores that are means or shares: a value with its count, its 95 % interval and its chance."""

from functools import cache

import numpy as np
from scipy import special, stats

COLUMNS = ("score", "task", "shots", "n", "value", "ci_low", "ci_high", "chance")


def row(
    score: str, task: str, shots: int | None, n: int, value: float, low: float, high: float, chance: float
) -> dict[str, object]:
    """One row, with COLUMNS."""
    return dict(zip(COLUMNS, (score, task, shots, n, value, low, high, chance), strict=True))


def mean_row(score: str, task: str, shots: int | None, values: np.ndarray, chance: float) -> dict[str, object]:
    """Mean over documents with Student's t interval, which is NaN when there is a single document."""

    mean, half = float(values.mean()), float("nan")
    if len(values) > 1:
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        half = float(special.stdtrit(len(values) - 1, 0.975)) * error
    return row(score, task, shots, len(values), mean, mean - half, mean + half, chance)


def share_row(score: str, task: str, shots: int | None, values: np.ndarray, chance: float) -> dict[str, object]:
    """Share of prompts with Wilson's interval."""
    low, high = _wilson(int(values.sum()), len(values))
    return row(score, task, shots, len(values), float(values.mean()), low, high, chance)


@cache
def _wilson(count: int, n: int) -> tuple[float, float]:
    interval = stats.binomtest(count, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)
