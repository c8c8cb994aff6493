"""More than two rising curves: coincidence, residuals, seeds; which heads; routing; what to measure next."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression
from scipy.stats import false_discovery_control

from sih.emergence.across import across
from sih.emergence.association import coincidence_p, residual_association, seed_association
from sih.emergence.gate import false_discovery_q
from sih.emergence.heads import control_onsets, head_onsets, traced_back
from sih.emergence.onset import kernel_matrix, octaves, unimodal_residuals
from sih.emergence.over_runs import over_seeds
from sih.emergence.routing import decomposed
from sih.emergence.suggest import Cell, suggested

STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 8000, 16000])
X = octaves(STEPS)


def sigmoid(middle, x=X):
    return 1 / (1 + np.exp(-(x - middle) / 0.5))


def test_coincidence_counts_controls_that_are_at_least_as_near():
    controls = [5.0, 7.9, 8.1, *[9.0] * 16, math.nan]
    assert coincidence_p(8.2, 8.0, controls) == pytest.approx((1 + 2) / (1 + 19))
    assert coincidence_p(8.0, 8.0, controls) == pytest.approx(1 / 20)
    assert math.isnan(coincidence_p(math.nan, 8.0, controls))


def test_fewer_controls_than_could_reach_five_percent_give_no_p():
    assert math.isnan(coincidence_p(8.0, 8.0, [9.0] * 18))
    assert coincidence_p(8.0, 8.0, [9.0] * 19) == pytest.approx(0.05)


@given(st.lists(st.floats(0, 1), min_size=0, max_size=40))
def test_false_discovery_is_scipys(p):
    want = false_discovery_control(p) if p else []
    np.testing.assert_allclose(false_discovery_q(np.array(p)), want, rtol=1e-12)


def test_residuals_of_many_series_are_those_of_each():
    """Against scipy's isotonic regression of one series after another; more series than are fitted at once."""
    rng = np.random.default_rng(5)
    y_NC = rng.normal(size=(150, len(X))) + 3 * np.tanh(X - rng.uniform(0, 12, (150, 1)))
    y_NC[0], y_NC[1], y_NC[2] = 0.0061, X, -X  # flat, and with the peak at either end
    y_NC[3] *= 1e9  # does not blur the others
    for y_C, found_C in zip(y_NC, unimodal_residuals(X, y_NC, 0.3), strict=True):
        end = int((kernel_matrix(X, 0.3) @ y_C).argmax()) + 1
        falling = isotonic_regression(y_C[end:], increasing=False).x if end < len(X) else []
        want_C = y_C - np.concatenate([isotonic_regression(y_C[:end]).x, falling])
        np.testing.assert_allclose(found_C, want_C, rtol=0, atol=1e-12 * np.ptp(y_C))


def test_residuals_are_what_a_unimodal_curve_cannot_follow():
    rise_and_fall = sigmoid(6) - sigmoid(11)
    np.testing.assert_allclose(unimodal_residuals(X, rise_and_fall[None], 0.3), 0, atol=1e-12)
    bumped = rise_and_fall.copy()
    bumped[2] += 0.1  # pooled with the lower values after it
    (residual,) = unimodal_residuals(X, bumped[None], 0.3)
    assert residual[2] > 0 > residual[3]
    assert residual.sum() == pytest.approx(0, abs=1e-12)


def test_shared_jitter_is_found_and_shared_rise_is_not():
    x = np.linspace(0, 14, 60)
    rng = np.random.default_rng(0)
    shared, own = rng.normal(0, 0.05, (2, 60))
    together = residual_association(x, sigmoid(7, x) + shared, sigmoid(9, x) + shared + 0.2 * own, 0.5, 0)
    assert together[0] > 0.8
    assert together[1] <= 0.02  # the signs of eight or nine blocks reach .008
    apart = residual_association(x, sigmoid(7, x) + shared, sigmoid(7, x) + own, 0.5, 0)
    assert apart[1] > 0.05
    missing = np.where(np.arange(60) == 30, np.nan, sigmoid(9, x) + shared + 0.2 * own)
    assert residual_association(x, sigmoid(7, x) + shared, missing, 0.5, 0)[1] <= 0.02


def test_residuals_of_too_few_checkpoints_or_of_none_say_nothing():
    assert math.isnan(residual_association(X[:8], X[:8], X[:8], 0.5, 0)[1])
    assert math.isnan(residual_association(X, sigmoid(7), sigmoid(8), 0.5, 0)[1])  # nothing is left over
    plateau = np.minimum(np.linspace(0, 1.7, 60), 0.7)
    noise = np.random.default_rng(0).normal(0, 0.05, (2, 60))
    rounded = plateau + 1e-16 * noise[0]  # as a mean over tasks leaves it
    assert math.isnan(residual_association(np.linspace(0, 14, 60), plateau + noise[1], rounded, 0.5, 0)[1])


def test_seeds_by_hand():
    """Six runs in perfect order: one of 720 pairings is as extreme."""
    order = np.arange(6.0)
    r, p, used = seed_association(order, 2 * order, ["m"] * 6, 0)
    assert (r, used) == (pytest.approx(1), 6)
    assert p == pytest.approx(1 / 720)
    heads, icl = np.array([1.0, 2, 3, 5, 4, 6]), np.array([1.0, 3, 2, 4, 9, 5])
    centred = heads - heads.mean()
    exact = np.mean([centred @ np.array(q) >= centred @ icl - 1e-9 for q in itertools.permutations(icl)])
    assert seed_association(heads, icl, ["m"] * 6, 0)[1] == pytest.approx(exact)


def test_seeds_are_permuted_within_sizes_only():
    """Both onsets follow size and nothing else: pooled they correlate, within sizes they do not."""
    rng = np.random.default_rng(1)
    sizes = ["a"] * 6 + ["b"] * 6 + ["c"] * 6
    shift = np.repeat([0.0, 3.0, 6.0], 6)
    h, i = shift + rng.normal(0, 0.2, 18), shift + rng.normal(0, 0.2, 18)
    assert np.corrcoef(h, i)[0, 1] > 0.95
    r, p, used = seed_association(h, i, sizes, 0)
    assert (used, p > 0.05) == (18, True)
    assert r == pytest.approx(np.corrcoef(h - shift, i - shift)[0, 1], abs=0.2)
    own = rng.normal(0, 0.5, 18)
    assert seed_association(shift + own, shift + own + rng.normal(0, 0.1, 18), sizes, 0)[1] <= 0.001


def test_runs_without_an_onset_and_models_with_few_runs_are_left_out():
    """Five runs are few: with four, a perfect order has p = .042, and two pairs could never pass."""
    h = np.array([1.0, 2, 3, 4, 5, 6, math.nan, 1, 2])
    assert seed_association(h, h, ["m"] * 7 + ["n"] * 2, 0)[2] == 6
    r, p, used = seed_association(h[:5], h[:5], ["m"] * 5, 0)
    assert (math.isnan(r), math.isnan(p), used) == (True, True, 0)


def test_heads_that_rise_are_found_among_those_that_do_not():
    rng = np.random.default_rng(2)
    rises = np.array([1.0, 0, 0, 0.5, 0, 0])
    numerator = rises[:, None, None] * sigmoid(7) + rng.normal(0, 0.2, (6, 60, len(X)))
    found = head_onsets(X, numerator, np.ones_like(numerator), 0.1, 0.5, 0)
    assert found.emerged_H.tolist() == [True, False, False, True, False, False]
    assert found.t50_H[[0, 3]] == pytest.approx([7, 7], abs=0.6)
    assert np.isnan(found.t50_H[[1, 2, 4, 5]]).all()
    assert (found.q_H >= found.p_H).all()
    nothing = head_onsets(X, np.empty((0, 60, len(X))), np.empty((0, 60, len(X))), 0.1, 0.5, 0)
    assert nothing.emerged_H.size == 0


def test_the_final_top_heads_are_traced_back():
    """Head 0 is early and fades; heads 1 and 2 are the mature ones, 2 since the second checkpoint."""
    index = np.array([[0.9, 0.9, 0.1, 0.0], [0.0, 0.0, 0.5, 0.6], [0.0, 0.4, 0.5, 0.7], [0.1, 0.2, 0.2, np.nan]])
    found = traced_back(index, index, 2)
    assert set(found.final) == {1, 2}
    np.testing.assert_allclose(found.overlap_C, [0, 0.5, 1, 1])
    np.testing.assert_allclose(found.index_C, [0, 0.2, 0.5, 0.65])
    assert (found.ceiling, found.chance) == (1, 0.5)
    assert traced_back(index, index[[0, 1, 3, 2]], 2).ceiling == 0.5  # the halves disagree about the final heads


def test_a_change_of_rate_is_routing_and_a_change_of_share_is_ov():
    base = np.array([True, False])
    rate = decomposed(np.array([[2.0, 4.0]]), np.array([[10.0, 20.0]]), 100, base)
    np.testing.assert_allclose([rate.routing_C[1], rate.ov_C[1], rate.total_C[1]], [0.02, 0, 0.02], atol=1e-12)
    share = decomposed(np.array([[2.0, 4.0]]), np.array([[10.0, 10.0]]), 100, base)
    np.testing.assert_allclose([share.routing_C[1], share.ov_C[1]], [0, 0.02], atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_parts_add_up_on_fixed_support(seed):
    rng = np.random.default_rng(seed)
    scored = rng.poisson(3, (5, 8)).astype(float)
    found = decomposed(scored * rng.uniform(size=(5, 8)), scored, 40, np.arange(8) < 2)
    assert found.heads == int((scored > 0).all(1).sum())
    np.testing.assert_allclose(found.routing_C + found.ov_C, found.total_C, atol=1e-12)
    if not found.heads:
        assert np.isnan(found.total_C).all()


def test_the_widest_open_bracket_is_cut_first_and_in_the_middle():
    offered = [0, 256, 512, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000]
    wide = Cell(1000, 8000, 0.9)

    def steps(*given):
        return [step for step, _ in suggested(*given)]

    assert steps([wide], offered, [0, 1000, 8000], 1) == [3000]  # halves three octaves best
    assert steps([wide, Cell(256, 512, 1.0)], offered, [0, 256, 512, 1000, 8000], 2) == [2000, 3000]
    assert steps([Cell(256, 512, 1.0)], offered, [0, 256, 512], 8) == []  # nothing public lies between
    assert steps([Cell(1000, 8000, 0.0)], offered, [0, 1000, 8000], 8) == []  # the checkpoints leave nothing open
    assert steps([wide], offered, [0, 1000, 8000], 8) == [2000, 3000, 4000, 5000, 6000, 7000]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_the_first_suggestion_is_the_best_of_all(count, seed):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.choice(5000, 4, replace=False))
    cells = [Cell(int(ends[0]), int(ends[2]), 0.7), Cell(int(ends[1]), int(ends[3]), 0.4)]
    offered = sorted({int(s) for s in rng.choice(5000, 12)})

    def left_open(cell, step):
        inside = [cell.lower, *([step] if cell.lower < step < cell.upper else []), cell.upper]
        parts = np.diff(octaves(np.array(inside)))
        return cell.jump * (parts**2).sum() / parts.sum()

    found = suggested(cells, offered, [], count)
    assert len(found) <= count
    if found:
        best = min(sum(left_open(c, s) for c in cells) for s in offered)
        ((first, narrows),) = suggested(cells, offered, [], 1)
        assert sum(left_open(c, first) for c in cells) == pytest.approx(best)
        assert narrows == pytest.approx(sum(c.width for c in cells) - best)


def timed(name, kind, onset):
    row = {"series": name, "kind": kind, "emerged": math.isfinite(onset), "flags": []}
    if row["emerged"]:
        row |= {"t50_log2": onset, "t50_step": 2**onset - 1}
        row |= {
            f"ci_{ends}_{end}_log2": onset + by
            for ends in ("jump", "bracket")
            for end, by in (("lo", -0.2), ("hi", 0.2))
        }
    return row


def result(heads, icl, decision="heads_lead", parameters=None):
    pair = {"heads": "prefix_matching", "icl": "accuracy", "decision": decision}
    if math.isfinite(icl):
        pair |= {"lag_oct": icl - heads, "ci_jump_lo": icl - heads - 0.3, "ci_jump_hi": icl - heads + 0.3}
    rows = [timed("prefix_matching", "heads", heads), timed("accuracy", "icl", icl)]
    sizes = {"tokens_per_step": 1024, "parameters": parameters}
    return {"headline": ["prefix_matching", "accuracy"], "series": rows, "pairs": [pair], **sizes}


def test_several_runs_together():
    runs = [("m", s, result(float(s), 2.0 * s + 1)) for s in range(6)] + [("m", 6, result(9.0, math.nan, "unresolved"))]
    rows, (pair,), by_model, by_size = across(runs, 0)
    of_heads, of_icl, of_lag = by_model
    assert (of_heads["count"], of_icl["count"], of_lag["count"], by_size) == (7, 6, 6, [])
    assert of_heads["bracket"] == pytest.approx(0.4)
    assert of_lag["mean"] == pytest.approx(3.5, abs=0.01)
    assert of_lag["low"] == pytest.approx(3.5 - math.hypot(2.571 * np.std(range(6), ddof=1) / 6**0.5, 0.3), abs=0.01)
    assert of_lag["decision"] == "heads_lead"
    assert len(rows) == 14
    assert rows[0] | {"flags": None} == rows[0] | {"model": "m", "model_seed": 0, "flags": None}
    assert (pair["n_runs"], pair["n_both_emerged"], pair["n_seeds"], pair["heads_lead"]) == (7, 6, 6, 6)
    assert pair["lag_oct"] == pytest.approx(np.mean([1, 2, 3, 4, 5, 6]))
    assert pair["p_seed_perm"] == pytest.approx(1 / 720)


def test_seeds_that_differ_by_no_more_than_their_intervals_have_no_variance_of_their_own():
    rng = np.random.default_rng(0)
    same = over_seeds(*_seeds(rng, 0.0))
    apart = over_seeds(*_seeds(rng, 1.0))
    assert same.between_sd < 0.15 < 0.4 < apart.between_sd < 1.6
    assert (same.within_sd, apart.within_sd) == pytest.approx((0.2, 0.2), rel=1e-3)
    few = over_seeds(*[v[:5] for v in _seeds(rng, 1.0)])
    assert few.count == 5
    assert math.isnan(few.mean)  # too few seeds for an interval, and for a decision
    assert over_seeds(*[np.full(3, np.nan)] * 3).count == 0


def _seeds(rng, between):
    value_R = rng.normal(8, between, 12) + rng.normal(0, 0.2, 12)
    return value_R, value_R - 0.2 * 1.96, value_R + 0.2 * 1.96


def test_the_slope_over_sizes_is_of_models_in_tokens():
    sizes = (2**20, 2**22, 2**24, 2**26)
    runs = [(f"m{n}", s, result(8.0 - k, 9.0, parameters=n)) for k, n in enumerate(sizes) for s in (0, 1)]
    of_heads, of_icl = across(runs, 0)[3]
    assert (of_heads["series"], of_heads["count"]) == ("prefix_matching", 4)
    assert of_heads["slope"] == pytest.approx(-0.5, abs=0.01)  # steps are 2**t50 - 1
    assert of_icl["slope"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(across(runs[:6], 0)[3][0]["slope"])  # three sizes


def test_controls_are_means_of_as_many_other_heads():
    value_HC = np.stack([sigmoid(middle) for middle in np.linspace(4, 12, 10)])
    mine = [h in (0, 1) for h in range(10)]
    found = control_onsets(X, value_HC, mine, 0.5, 0)
    assert len(found) == math.comb(10, 2) - 1  # every pair but the series' own
    assert found.min() > 4.2  # a mean of two is not as early as the first head alone
    assert np.array_equal(found, control_onsets(X, value_HC, mine, 0.5, 0))
    assert len(control_onsets(X, value_HC, [True] * 10, 0.5, 0)) == 0  # no choice
    assert len(control_onsets(X, value_HC, [False] * 10, 0.5, 0)) == 0
