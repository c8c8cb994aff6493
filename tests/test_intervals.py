"""Nominal 95 % intervals of what is drawn over training cover the truth, single and pooled, balanced and unbalanced."""

import numpy as np
import pytest

from sih.emergence.intervals import document_interval
from sih.results.means import mean_over_heads
from sih.results.trajectory import Trajectory, family

RUNS = 2500


def covered(values, truth):
    """Share of the runs, here checkpoints of one trajectory after another, whose interval has the truth."""
    inside = [low[0] <= truth <= high[0] for low, high in map(document_interval, values)]
    return float(np.mean(inside))


def series(numerator_DC, denominator_DC=None):
    denominator_DC = np.ones_like(numerator_DC) if denominator_DC is None else denominator_DC
    documents = [f"d{i}" for i in range(len(numerator_DC))]
    return Trajectory("s", "icl", "p", documents, numerator_DC, denominator_DC, 1, 0.1)


@pytest.mark.parametrize("documents", [20, 64])
def test_a_mean_over_documents(documents):
    rng = np.random.default_rng(0)
    runs = (series(rng.gamma(4, 0.1, (documents, 1))) for _ in range(RUNS))
    assert 0.93 <= covered(runs, 0.4) <= 0.97


@pytest.mark.parametrize("documents", [40, 150])
def test_a_pool_of_events_of_documents_that_have_very_different_numbers_of_them(documents):
    """The index over all events, with a document's level and its number of events both random."""
    rng = np.random.default_rng(1)

    def one():
        count_D = rng.poisson(rng.gamma(1.0, 8.0, documents)) + 1.0
        level_D = np.clip(rng.normal(0.3, 0.1, documents), 0, 1)
        return series(rng.binomial(count_D.astype(int), level_D)[:, None].astype(float), count_D[:, None])

    assert 0.93 <= covered((one() for _ in range(RUNS)), 0.3) <= 0.97


def of_arrays(total_HD: np.ndarray, count_HD: np.ndarray, fewest: int) -> np.ndarray:
    """The mean over heads with one row for each head and document."""
    head_R, document_R = (x.ravel() for x in np.indices(total_HD.shape))
    return mean_over_heads(total_HD.ravel(), count_HD.ravel(), head_R, document_R, total_HD.shape, fewest)


@pytest.mark.parametrize(("documents", "heads"), [(60, 4), (150, 38)])
def test_a_mean_over_heads_whose_numbers_of_events_differ_a_hundredfold(documents, heads):
    """Heads see the same documents, so they are not independent; each has its own index and weighs the same."""
    rng = np.random.default_rng(2)
    rate_H = np.geomspace(0.5, 50, heads)
    index_H = np.linspace(0.6, 0.1, heads)  # the heads with the fewest events have the largest index

    def one():
        document_D = rng.normal(0, 0.08, documents)
        count_HD = rng.poisson(rate_H[:, None], (heads, documents))
        level_HD = np.clip(index_H[:, None] + document_D, 0, 1)
        total_HD = rng.binomial(count_HD, level_HD).astype(float)
        return series(of_arrays(total_HD, count_HD, 10)[:, None])

    assert 0.93 <= covered((one() for _ in range(RUNS // 2)), float(index_H.mean())) <= 0.97


def test_a_family_of_tasks_of_different_sizes():
    rng = np.random.default_rng(3)
    chance_of = (0.3, 0.5, 0.8)

    def one():
        tasks = []
        for p, episodes, positions in zip(chance_of, (18, 36, 72), (16, 12, 6), strict=True):
            own_D = rng.beta(4 * p, 4 * (1 - p), episodes)  # answers within an episode are not independent
            right_D = rng.binomial(positions, own_D)[:, None].astype(float)
            tasks.append(series(right_D, np.full_like(right_D, positions)))
        return family("all", tasks, headline=True)

    assert 0.93 <= covered((one() for _ in range(RUNS)), float(np.mean(chance_of))) <= 0.97


def test_a_head_with_few_events_weighs_as_much_as_one_with_many():
    """Pooled over events the index would be .10, and the head that rises would vanish in it."""
    count_HD = np.array([[1.0] * 30, [300.0] * 30])
    total_HD = count_HD * np.array([0.5, 0.1])[:, None]
    assert of_arrays(total_HD, count_HD, fewest=20).mean() == pytest.approx(0.3)
    assert of_arrays(total_HD, count_HD, fewest=31).mean() == pytest.approx(0.1)  # half of the heads are left
    assert np.isnan(of_arrays(total_HD, count_HD, fewest=10_000)).all()


def test_a_document_without_a_value_says_nothing_of_its_head():
    rng = np.random.default_rng(4)
    total_HD, count_HD = rng.uniform(size=(3, 20)), np.ones((3, 20))
    total_HD[1, 5] = np.nan
    assert of_arrays(total_HD, count_HD, fewest=1).mean() == pytest.approx(np.nanmean(total_HD, axis=1).mean())
