"""Rows of scores that are means or shares: a value with its count, its 95 % interval and its chance.

Letters: E episodes, or whatever else is independent.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

COLUMNS = ("score", "task", "shots", "n", "value", "ci_low", "ci_high", "chance")
LEVEL = 0.975  # both ends of a 95 % interval


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
        half = float(special.stdtrit(len(values) - 1, LEVEL)) * error
    return row(score, task, shots, len(values), mean, mean - half, mean + half, chance)


def share_row(score: str, task: str, shots: int | None, values: np.ndarray, chance: float) -> dict[str, object]:
    """Share of independent answers, 0 or 1 each, with Wilson's interval."""
    share = float(values.mean())
    low, high = wilson(share, len(values), special.ndtri(LEVEL))
    return row(score, task, shots, len(values), share, float(low), float(high), chance)


def clustered_share_row(
    score: str, task: str, shots: int | None, share_E: np.ndarray, answers_E: np.ndarray, chance: float
) -> dict[str, object]:
    """Mean of the episodes' shares, whose answers are not independent within an episode."""
    low, high = clustered_share_interval(share_E, answers_E)
    return row(score, task, shots, len(share_E), float(share_E.mean()), float(low), float(high), chance)


def mean_of_rows(score: str, task: str, shots: int | None, rows: Sequence[dict], chance: float) -> dict[str, object]:
    """Mean of independent rows, each with the same weight, such as those of several tasks; n is their sum."""
    value, low, high = (np.array([r[c] for r in rows], dtype=float) for c in ("value", "ci_low", "ci_high"))
    ends = mean_interval(value, low, high)
    n = sum(int(r["n"]) for r in rows)
    return row(score, task, shots, n, float(value.mean()), float(ends[0]), float(ends[1]), chance)


def mean_interval(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the mean of independent values, along the last axis, from the interval of each.

    The distances from the mean to its limits are the root sums of squares of the values' own, each by its weight [Zou
    & Donner 2008]. Unlike a pooled variance, they are above 0 where every share is 0 or 1.
    """
    weight, mean = 1 / value.shape[-1], value.mean(-1)
    below, above = (weight * np.sqrt(np.square(d).sum(-1)) for d in (value - low, high - value))
    return mean - below, mean + above


def wilson(
    share: np.ndarray | float, n: np.ndarray | float, critical: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a share of n independent answers, which may be a fraction; elementwise."""
    c = np.square(critical) / n
    middle = (share + c / 2) / (1 + c)
    half = np.sqrt(share * (1 - np.asarray(share)) * c + c**2 / 4) / (1 + c)
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)


def clustered_share_interval(share_E: np.ndarray, answers_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of the mean of episodes' shares, at their effective number of independent answers.

    That number is p (1 - p) / (the variance of the mean over episodes) [Korn & Graubard 1998]. It is at least the
    number of episodes, which it also is where all answers are alike, and at most what independent answers give: their
    interval is then Wilson's own. Otherwise Student's t of the episodes takes the place of z, since the variance is
    estimated. The episodes are along the last axis; 0 to 1 for one of them.
    """
    episodes = share_E.shape[-1]
    if episodes < 2:
        return np.zeros(share_E.shape[:-1]), np.ones(share_E.shape[:-1])
    p = share_E.mean(-1)
    variance = share_E.var(-1, ddof=1) / episodes
    most = episodes**2 / (1 / answers_E).sum(-1)
    alike = (p == 0) | (p == 1)
    effective = np.where(alike, episodes, p * (1 - p) / np.maximum(variance, np.finfo(float).tiny))
    critical = np.where(effective >= most, special.ndtri(LEVEL), special.stdtrit(episodes - 1, LEVEL))
    return wilson(p, np.clip(effective, episodes, most), critical)


def paired_interval(difference_D: np.ndarray, seed: int, resamples: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean of paired differences: bootstrap-t over the documents [Efron & Tibshirani 1993, 12.5].

    Each resample's distance from the mean is divided by its own standard error, so that few documents, and those with
    long tails, do not make it too narrow. Student's t where so few documents differ that some resample has hardly any
    error. NaN for fewer than two documents; the mean twice where all are alike.
    """
    count = len(difference_D)
    if count < 2:
        return float("nan"), float("nan")
    mean, error = difference_D.mean(), difference_D.std(ddof=1) / np.sqrt(count)
    if error < 1e-12 * max(1.0, abs(mean)):
        return float(mean), float(mean)
    rng = np.random.default_rng([seed, *b"paired interval"])
    drawn_ND = difference_D[rng.integers(count, size=(resamples, count))]
    error_N = drawn_ND.std(1, ddof=1) / np.sqrt(count)
    if (error_N < error / 10).any():
        half = float(special.stdtrit(count - 1, LEVEL)) * error
        return float(mean - half), float(mean + half)
    low, high = np.quantile((drawn_ND.mean(1) - mean) / error_N, [1 - LEVEL, LEVEL])
    return float(mean - high * error), float(mean - low * error)
