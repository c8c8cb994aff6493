"""The intervals of shares and means include the truth as often as they say, in simulated episodes.

An episode's answers are right with a probability of its own, beta-distributed: their correlation is `rho`.
"""

import numpy as np
import pytest
from scipy import stats

from sih.scores.tables import (
    clustered_share_interval,
    clustered_share_row,
    mean_interval,
    mean_of_rows,
    mean_row,
    share_row,
    wilson,
)

EPISODES = 36
SHARES = np.arange(1, 10) / 10
ANSWERS = {
    "one": [1],
    "sixteen": [16],  # 5 to 20 shots
    "twelve": [12],  # 9 to 20 shots, of nine classes
    "unbalanced": list(range(1, 21)),
    "very unbalanced": [2, 16],
}


def drawn(rng, p, rho, answers_E, repeats):
    """Share of right answers of each episode, (repeats, E)."""
    own = np.full((repeats, EPISODES), p)
    if rho:
        own = rng.beta(p * (1 / rho - 1), (1 - p) * (1 / rho - 1), (repeats, EPISODES))
    return rng.binomial(answers_E, own) / answers_E


def coverage(answers, rho, repeats):
    """Share of intervals that include p, for every p."""
    rng = np.random.default_rng([len(answers), round(100 * rho)])
    answers_E = np.resize(ANSWERS[answers], EPISODES)
    found = []
    for p in SHARES:
        low, high = clustered_share_interval(drawn(rng, p, rho, answers_E, repeats), answers_E)
        found.append(np.mean((low <= p) & (p <= high)))
    return np.array(found)


@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("rho", [0.0, 0.1, 0.3])
def test_a_share_of_answers_that_hang_together(answers, rho):
    found = coverage(answers, rho, 4000)
    assert 0.93 <= found.mean() <= 0.97
    assert found.min() >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("rho", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_a_share_of_answers_that_hang_together_often(answers, rho):
    found = coverage(answers, rho, 20_000)
    assert 0.93 <= found.mean() <= 0.97
    assert found.min() >= 0.925


def test_a_share_at_one_number_of_shots():
    """Exactly, over all counts that a share of 36 answers can have."""
    ends = [share_row("", "", 0, np.arange(EPISODES) < count, 0.0) for count in range(EPISODES + 1)]
    low, high = (np.array([r[c] for r in ends]) for c in ("ci_low", "ci_high"))
    counts = stats.binom.pmf(np.arange(EPISODES + 1), EPISODES, SHARES[:, None])
    found = (counts * ((low <= SHARES[:, None]) & (SHARES[:, None] <= high))).sum(1)
    assert 0.93 <= found.mean() <= 0.97
    assert found.min() >= 0.92


@pytest.mark.parametrize("pooled", [False, True], ids=["one number of shots", "all of them"])
@pytest.mark.parametrize("apart", [0.0, 0.08, 0.3], ids=["alike", "near", "far apart"])
def test_a_mean_over_tasks(pooled, apart):
    """Four tasks of different difficulty, each with the same weight."""
    rng = np.random.default_rng([pooled, round(100 * apart)])
    answers_E = np.full(EPISODES, 16 if pooled else 1)
    found = []
    for p in SHARES:
        tasks = np.clip(p + apart * np.array([-1, -0.5, 0.5, 1]), 0.02, 0.98)
        shares = [drawn(rng, q, 0.15, answers_E, 3000) for q in tasks]
        value = np.stack([share.mean(-1) for share in shares], axis=-1)
        if pooled:
            ends = [
                np.stack(e, axis=-1)
                for e in zip(*(clustered_share_interval(s, answers_E) for s in shares), strict=True)
            ]
        else:
            ends = wilson(value, EPISODES, stats.norm.ppf(0.975))
        low, high = mean_interval(value, *ends)
        found.append(np.mean((low <= tasks.mean()) & (tasks.mean() <= high)))
    assert 0.93 <= np.mean(found) <= 0.97
    assert np.min(found) >= 0.91


def test_a_mean_of_margins_over_tasks():
    """Normal values, of other scatter in every task."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1500):
        rows = [mean_row("", "", 0, rng.normal(m, s, EPISODES), 0.0) for m, s in ((0, 1), (1, 2), (-1, 0.5), (2, 1))]
        mean = mean_of_rows("", "", 0, rows, 0.0)
        found.append(mean["ci_low"] <= 0.5 <= mean["ci_high"])
    assert 0.93 <= np.mean(found) <= 0.97


def test_no_interval_of_shares_has_a_width_of_0():
    answers_E = np.full(EPISODES, 16)
    for value in (0.0, 0.5, 1.0):  # 0.5: eight right of every sixteen
        rows = [clustered_share_row("", "", None, np.full(EPISODES, value), answers_E, 0.0)] * 2
        for r in (rows[0], mean_of_rows("", "", None, rows, 0.0)):
            assert r["ci_low"] <= value <= r["ci_high"]
            assert r["ci_high"] - r["ci_low"] > 0.03
            assert 0 <= r["ci_low"] <= r["ci_high"] <= 1
    alone = clustered_share_row("", "", None, np.array([0.25]), np.array([16]), 0.0)
    assert (alone["ci_low"], alone["ci_high"]) == (0, 1), "one episode tells nothing about others"


def test_wilson_is_that_of_scipy():
    for count, n in ((0, 36), (7, 36), (36, 36), (1, 2)):
        got = share_row("", "", 0, np.arange(n) < count, 0.0)
        want = stats.binomtest(count, n).proportion_ci(0.95, "wilson")
        assert (got["ci_low"], got["ci_high"]) == pytest.approx((want.low, want.high), abs=1e-12)
