import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sih.emergence.gate import ALPHA, assess
from sih.emergence.intervals import Replicates, between, document_weights, lag_between, resampled_onsets
from sih.emergence.null import contrasts, noise_of, roughness, tail_p
from sih.emergence.onset import half_rise, jitter_sd, kernel_matrix, octaves
from sih.emergence.timing import analyse
from sih.errors import SihError
from sih.results.trajectory import Trajectory, family

STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 8000, 16000])
X = octaves(STEPS)


def test_a_step_between_two_checkpoints():
    onset = half_rise(X, np.where(STEPS > 256, 1.0, 0.0), 0.01)
    assert onset.cell == (9, 10)
    assert onset.t50 == pytest.approx((X[9] + X[10]) / 2)
    assert onset.jump_share == pytest.approx(1)
    assert (onset.base, onset.top, onset.rise) == pytest.approx((0, 1, 1))


def test_a_straight_ramp_over_even_octaves():
    x = np.arange(9.0)
    onset = half_rise(x, x / 8, 1e-6)
    base = (0 + 1 / 8) / 2  # mean fit within the first octave
    assert onset.t50 == pytest.approx(8 * (base + 1) / 2)
    assert onset.t10 == pytest.approx(8 * (base + 0.1 * (1 - base)))
    assert onset.t90 == pytest.approx(8 * (base + 0.9 * (1 - base)))
    assert onset.jump_share == pytest.approx((1 / 8) / (1 - base))


def test_a_transient_is_timed_by_its_rise():
    x = np.arange(12.0)
    y = np.array([0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0])
    onset = half_rise(x, y, 0.3)
    assert 3 < onset.t50 < 4
    assert onset.peak in (4, 5, 6)


def test_a_tie_crosses_at_its_first_checkpoint():
    onset = half_rise(np.arange(5.0), np.array([0, 0, 0.5, 0.5, 1.0]), 1e-6)
    assert onset.t50 == pytest.approx(2)
    assert onset.cell == (1, 2)


def test_nothing_rises():
    for y in (np.zeros(6), -np.arange(6.0)):
        assert math.isnan(half_rise(np.arange(6.0), y, 0.5).t50)


RISES = st.lists(st.floats(0, 1), min_size=len(X), max_size=len(X)).map(lambda v: np.round(np.array(v), 3))


@settings(max_examples=60, deadline=None)
@given(RISES, st.floats(-3, 3), st.floats(0.1, 10), st.floats(-5, 5))
def test_shifting_time_shifts_onsets_and_scaling_values_changes_nothing(y, shift, scale, offset):
    plain = half_rise(X, y, 0.5)
    moved = half_rise(X + shift, scale * y + offset, 0.5)
    assert math.isnan(plain.t50) == math.isnan(moved.t50) or plain.rise < 1e-6
    if not math.isnan(plain.t50) and plain.rise > 1e-6:
        assert moved.t50 == pytest.approx(plain.t50 + shift, abs=1e-6)
        assert moved.rise == pytest.approx(scale * plain.rise, rel=1e-6, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.floats(2, 12), st.floats(0.1, 2))
def test_a_finer_grid_never_widens_the_bracket(middle, width):
    def cell(x):
        onset = half_rise(x, 1 / (1 + np.exp(-(x - middle) / width)), 1e-3)
        return x[onset.cell[1]] - x[onset.cell[0]]

    coarse = np.arange(0, 15.0)
    assert cell(np.arange(0, 14.25, 0.25)) <= cell(coarse) + 1e-9


def test_the_kernel_keeps_constants_and_jitter_sees_none_in_a_line():
    np.testing.assert_allclose(kernel_matrix(X, 0.5) @ np.full(len(X), 3.0), 3)
    assert jitter_sd(X, 2 * X + 1) == pytest.approx(0, abs=1e-12)


def test_jitter_estimates_independent_noise():
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.uniform(0.1, 1, 4000))
    noise = rng.normal(0, 0.2, 4000)
    assert jitter_sd(x, noise) == pytest.approx(0.2, rel=0.05)
    assert jitter_sd(x, noise + (x > x[2000])) == pytest.approx(0.2, rel=0.05)  # a jump is no noise


def sigmoid(x, middle, width=0.5):
    return 1 / (1 + np.exp(-(x - middle) / width))


def documents(rng, middle, n=80, noise=0.3):
    level_D, size_D = rng.normal(0, 0.2, n), rng.normal(1, 0.3, n)
    return level_D[:, None] + size_D[:, None] * sigmoid(X, middle) + rng.normal(0, noise, (n, len(X)))


def trajectory(name, kind, values_DC, pool=None, **changes):
    return Trajectory(
        **{
            "name": name,
            "kind": kind,
            "pool": pool or name,
            "documents": [f"d{i}" for i in range(len(values_DC))],
            "numerator_DC": values_DC,
            "denominator_DC": np.ones_like(values_DC),
            "sign": 1,
            "delta": 0.1,
        }
        | changes
    )


def test_weights_of_a_ratio_apply_to_both_parts():
    weights = document_weights(5, 7, np.random.default_rng(0))
    assert weights.shape == (7, 5)
    assert (weights.sum(1) == 5).all()
    numerator = np.outer(np.arange(1, 6), np.where(X > 8, 2.0, 1.0))
    denominator = np.outer(np.arange(1, 6), np.ones(len(X)))
    found = resampled_onsets(X, numerator, denominator, weights, 1, 0.01)
    assert np.ptp(found.t50) == pytest.approx(0, abs=1e-9)  # the ratio is the same for every document


def test_between_takes_the_outer_tails():
    low, high = between(np.linspace(0, 1, 1001), np.linspace(1, 2, 1001))
    assert (low, high) == pytest.approx((0.025, 1.975))
    assert math.isnan(between(np.full(3, np.nan), np.full(3, np.nan))[0])


def test_places_in_two_cells_are_independent_unless_both_rises_are_jumps():
    """Two onsets, each anywhere in a cell of one octave: their difference is triangular, its 1 % tail 1 - sqrt(.02)."""
    ones = np.ones(2000)
    h = Replicates(4.5 * ones, 4 * ones, 5 * ones, 4 * ones, 5 * ones)
    i = Replicates(6.5 * ones, 6 * ones, 7 * ones, 6 * ones, 7 * ones)
    assert lag_between(h, i, True, np.random.default_rng(0)) == (1, 3)
    reach = 1 - math.sqrt(0.02)
    assert lag_between(h, i, False, np.random.default_rng(0)) == pytest.approx((2 - reach, 2 + reach), abs=0.02)
    certain = Replicates(*[4.5 * ones] * 5)
    assert lag_between(certain, Replicates(*[6 * ones] * 5), False, np.random.default_rng(0)) == (1.5, 1.5)
    nothing = Replicates(*[np.full(2000, np.nan)] * 5)
    assert all(math.isnan(v) for v in lag_between(h, nothing, True, np.random.default_rng(0)))


def test_flags_of_few_checkpoints_and_of_q():
    rng = np.random.default_rng(8)
    rows, _ = analysed(
        trajectory("a", "icl", documents(rng, 4)[:, :10]), trajectory("b", "icl", documents(rng, 4)[:, :10]),
        steps=STEPS[:10],
    )  # fmt: skip
    assert all("low_power" in row["flags"] for row in rows)
    assert all(row["q_bh"] >= row["p_emergence"] for row in rows)


def test_one_document_and_constant_series_are_flags():
    row, found = flags(sigmoid(X, 8)[None])
    assert (row["emerged"], "no_emergence" in found) == (False, True)  # one document shows no significance
    row, found = flags(np.full((20, len(X)), 0.3))
    assert (row["emerged"], row["rise"], "no_emergence" in found) == (False, pytest.approx(0), True)
    row, found = flags(np.full((20, len(X)), np.nan))
    assert (row["n_checkpoints"], "no_emergence" in found) == (0, True)


def test_association_of_a_pair_stands_in_its_row():
    rng = np.random.default_rng(9)
    pair = [trajectory("h", "heads", documents(rng, 6)), trajectory("i", "icl", documents(rng, 10))]
    _, (row,) = analysed(*pair, controls={"h": np.array([*[4.0] * 18, 7.0, math.nan])})
    assert row["n_controls"] == 19
    assert row["few_controls"]
    # The heads' onset is near 6: only the control at 7 is nearer to in-context learning.
    assert row["p_coincidence"] == pytest.approx(2 / 20)
    assert math.isnan(row["p_residual"])  # the signs of five blocks cannot reach .05
    _, (alone,) = analysed(*pair)
    assert math.isnan(alone["p_coincidence"])


def jittered(rng, sd, autocorrelation, n=100, noise=0.3):
    """A flat series of documents that share AR(1) jitter."""
    jitter = [rng.normal()]
    for _ in X[1:]:
        jitter.append(autocorrelation * jitter[-1] + math.sqrt(1 - autocorrelation**2) * rng.normal())
    return sd * np.array(jitter) + rng.normal(0, 0.5, (n, 1)) + rng.normal(0, noise, (n, len(X)))


def risen_p(values_DC, rng, delta=0.1):
    found = assess(X, values_DC, np.ones_like(values_DC), 1, delta, 0.5, rng)
    assert found.rises == (found.p <= ALPHA and found.onset.rise >= delta)
    return found.p


def test_the_gate_sees_a_rise_and_holds_its_level_under_jitter_that_all_documents_share():
    rng = np.random.default_rng(1)
    assert risen_p(documents(rng, 8), rng) <= 1e-3
    for autocorrelation in (0.0, 0.6):
        hits = sum(risen_p(jittered(rng, 0.1, autocorrelation), rng) <= 0.05 for _ in range(150))
        assert hits <= 16  # 5 % of 150, and three standard errors


def test_noise_is_counted_once_and_does_not_depend_on_the_unit():
    rng = np.random.default_rng(11)
    values = jittered(rng, 0, 0)
    beyond = (values - values.mean(0)) / len(values)

    def noise(y_C, scale):
        return noise_of(X, scale * y_C, scale * beyond, np.random.default_rng(0))

    quiet, loud = noise(values.mean(0), 1), noise(values.mean(0) + rng.normal(0, 0.3, len(X)), 1)
    assert quiet.sd < 0.03 < 0.15 < loud.sd < 0.6  # the documents' own noise is 0.03, the jitter 0 and 0.3
    assert noise(values.mean(0), 7).sd == pytest.approx(7 * quiet.sd)
    of_documents = 0.3**2 / 100 * (contrasts(X) ** 2).sum(1)  # a document's level is in none of its contrasts
    np.testing.assert_allclose(quiet.sd_P**2, np.std(quiet.jitter_NP, axis=0) ** 2 + of_documents, rtol=0.4)
    for place in (3, 10):  # other contrasts are made so small that the largest is this one, or about 0
        largest_N = quiet.largest(2000, np.where(np.arange(len(X) - 1) == place, 1, 1e9), rng)
        assert np.sqrt(2 * (largest_N**2).mean()) == pytest.approx(quiet.sd_P[place], rel=0.06)


def test_a_rise_hardly_changes_the_roughness():
    rng = np.random.default_rng(12)
    flat = rng.normal(0, 0.02, (300, len(X)))
    plain = roughness(X, flat).mean(0)
    for shape in (sigmoid(X, 8), sigmoid(X, 7) - sigmoid(X, 11)):
        risen = roughness(X, flat + shape).mean(0)
        assert 0.3 * plain[0] < risen[0] < 2 * plain[0]  # the fit follows some of the noise


def test_gaps_neither_make_a_rise_nor_hide_one():
    rng = np.random.default_rng(15)

    def with_gaps(values_DC):
        gaps = rng.choice(len(X) - 2, 3, replace=False) + 1
        values_DC[:, gaps] = np.nan
        return values_DC

    assert risen_p(with_gaps(documents(rng, 8)), rng) <= 1e-3
    assert sum(risen_p(with_gaps(jittered(rng, 0.1, 0.5)), rng) <= 0.05 for _ in range(100)) <= 12


def test_contrasts_by_hand():
    found = contrasts(np.array([0.0, 1.0, 2.0, 6.0]))
    np.testing.assert_allclose(found @ [1.0, 2.0, 4.0, 8.0], [3 - 1, 4 - 1.5, 8 - 7 / 3], rtol=1e-6)


def test_a_fitted_tail_continues_the_empirical_one():
    null = np.random.default_rng(13).exponential(size=4000)
    assert tail_p(null, 1.0) == pytest.approx(math.exp(-1), rel=0.1)
    assert tail_p(null, 12.0) == pytest.approx(math.exp(-12), rel=20)
    assert 1e-9 < tail_p(null, 12.0) < 1 / 4001
    assert tail_p(np.zeros(99), 1.0) == pytest.approx(1 / 100)


def test_a_single_document_or_a_constant_shows_nothing():
    rng = np.random.default_rng(14)
    assert risen_p(sigmoid(X, 8)[None], rng) == 1
    assert risen_p(np.full((20, len(X)), 0.3), rng) == 1


def analysed(*trajectories, steps=STEPS, **changes):
    return analyse(list(steps), trajectories, **{"bandwidth": 0.5, "bootstrap": 100, "seed": 0} | changes)


def test_a_rise_that_mostly_falls_between_two_checkpoints_may_lie_anywhere_between_them():
    """Rises of 1 in three steps, .3, `middle` and the rest; the middle one falls into 256 to 512."""
    rng = np.random.default_rng(3)

    def row(middle: float) -> dict:
        curve = np.select([STEPS > 512, STEPS > 256, STEPS > 128], [1, 0.3 + middle, 0.3], 0.0)
        values = curve + rng.normal(0, 0.05, (40, len(X)))
        ((found,), _) = analysed(trajectory("h", "heads", values), bandwidth=0.01)
        assert found["jump_share"] == pytest.approx(middle, abs=0.05)
        return found

    mostly, partly = row(0.6), row(0.4)
    assert "unresolved_step" in mostly["flags"]
    ends = octaves(np.array([256, 512]))
    assert [mostly["ci_jump_lo_log2"], mostly["ci_jump_hi_log2"]] == pytest.approx(list(ends))
    assert ends[0] < partly["ci_jump_lo_log2"] < partly["t50_log2"] < partly["ci_jump_hi_log2"] < ends[1]


def test_heads_before_icl_and_the_other_way_round():
    rng = np.random.default_rng(2)
    early, late = documents(rng, 6), documents(rng, 10)
    rows, (pair,) = analysed(trajectory("h", "heads", early), trajectory("i", "icl", late))
    assert all(row["emerged"] for row in rows)
    assert pair["decision"] == "heads_lead"
    assert pair["lag_oct"] == pytest.approx(4, abs=0.5)
    assert pair["ci_bracket_lo"] <= pair["ci_jump_lo"] <= pair["lag_oct"] <= pair["ci_jump_hi"] <= pair["ci_bracket_hi"]
    _, (pair,) = analysed(trajectory("h", "heads", late), trajectory("i", "icl", early))
    assert pair["decision"] == "icl_leads"
    assert pair["lag_oct"] < 0


def test_overlapping_brackets_are_unresolved():
    rng = np.random.default_rng(3)
    _, (pair,) = analysed(trajectory("h", "heads", documents(rng, 8.5)), trajectory("i", "icl", documents(rng, 8.5)))
    assert (pair["decision"], pair["reason"]) == ("unresolved", "the brackets overlap")


def test_losses_rise_downwards():
    rng = np.random.default_rng(4)
    values = documents(rng, 8)
    (up,), _ = analysed(trajectory("a", "icl", values))
    (down,), _ = analysed(trajectory("a", "icl", -values, sign=-1))
    assert up["t50_log2"] == down["t50_log2"]
    assert down["base"] == -up["base"]


def flags(values, steps=STEPS, **changes):
    (row,), _ = analysed(trajectory("s", "icl", values, **changes), steps=steps)
    return row, set(row["flags"])


def test_flags():
    rng = np.random.default_rng(5)
    flat = rng.normal(0, 0.1, (40, len(X)))
    row, found = flags(flat)
    assert (row["emerged"], found >= {"no_emergence"}) == (False, True)
    assert "t50_step" not in row

    row, found = flags(documents(rng, 4)[:, :6], STEPS[:6])
    assert "too_few_checkpoints" in found

    _, found = flags(documents(rng, 12.5))
    assert "plateau_unobserved" in found

    _, found = flags(documents(rng, 11)[:, 5:], STEPS[5:])
    assert "baseline_unobserved" in found

    shape = sigmoid(X, 7) - sigmoid(X, 11)
    _, found = flags(shape + rng.normal(0, 0.05, (60, len(X))))
    assert "transient" in found

    _, found = flags(np.where(STEPS > 256, 1.0, 0.0) + rng.normal(0, 0.05, (60, len(X))))
    assert "unresolved_step" in found

    _, found = flags(np.where(STEPS > 0, 1.0, 0.0) + rng.normal(0, 0.05, (60, len(X))))
    assert found == {"unresolved_step", "onset_at_first_cell"}

    values = documents(rng, 8)
    row, found = flags(values, excess_DC=values - 5.0)
    assert (row["emerged"], "not_above_floor" in found) == (False, True)

    missing = documents(rng, 8)
    missing[:, 2:7] = np.nan
    row, found = flags(missing)
    assert "low_support" in found
    assert row["n_checkpoints"] == len(X) - 5


def test_two_checkpoints_are_a_flag_and_not_an_exception():
    row, found = flags(np.array([[0.0, 1], [0, 1]]), steps=[0, 1000])
    assert (row["emerged"], found) == (False, {"too_few_checkpoints", "no_emergence"})


def test_the_same_seed_gives_the_same_table():
    rng = np.random.default_rng(6)
    values = documents(rng, 8)
    assert analysed(trajectory("s", "icl", values)) == analysed(trajectory("s", "icl", values))


def test_series_that_share_documents_share_their_weights():
    """The same documents give the lag no document uncertainty at all; other documents do."""
    values = documents(np.random.default_rng(7), 8)
    _, (same,) = analysed(trajectory("h", "heads", values, "p"), trajectory("i", "icl", values, "p"))
    _, (apart,) = analysed(trajectory("h", "heads", values, "p"), trajectory("i", "icl", values, "q"))
    assert same["ci_doc_lo"] == same["ci_doc_hi"] == 0
    assert apart["ci_doc_hi"] - apart["ci_doc_lo"] > 0.01
    part = trajectory("i", "icl", values[::2], "p", documents=[f"d{i}" for i in range(0, len(values), 2)])
    _, (half,) = analysed(trajectory("h", "heads", values, "p"), part)
    assert half["ci_doc_hi"] - half["ci_doc_lo"] < apart["ci_doc_hi"] - apart["ci_doc_lo"]


@pytest.mark.parametrize("steps", [[0, 2, 1], [0, 1, 1], []])
def test_steps_must_increase(steps):
    with pytest.raises(SihError, match="steps must increase"):
        analysed(steps=steps)


def test_arrays_must_fit_the_steps():
    with pytest.raises(SihError, match=r"arrays of \(2, 3\) for 2 documents, 16 steps"):
        analysed(trajectory("s", "icl", np.zeros((2, 3))))


def family_row(*middles, steps=STEPS):
    """The row of a family whose members rise at these octaves; None: never."""
    rng = np.random.default_rng(8)
    members = []
    for n, middle in enumerate(middles):
        values = rng.normal(0, 0.1, (40, len(X))) if middle is None else documents(rng, middle)
        names = [f"t{n}/d{i}" for i in range(len(values))]
        members.append(trajectory(f"t{n}", "icl", values, "p", documents=names))
    rows, _ = analysed(family("f", members, headline=True), *members, steps=steps)
    return next(r for r in rows if r["series"] == "f"), [r for r in rows if r["series"] != "f"]


@pytest.mark.parametrize("middles", [(6, 9), (5, 7, 9), (5, 7, 9, 11)])
def test_a_familys_onset_is_the_median_of_its_members_and_lies_in_its_bracket(middles):
    row, members = family_row(*middles)
    assert row["emerged"]
    assert row["t50_log2"] == pytest.approx(np.median([r["t50_log2"] for r in members]))
    assert row["cell_lo_step"] <= row["t50_step"] <= row["cell_hi_step"]
    assert row["ci_jump_lo_log2"] <= row["t50_log2"] <= row["ci_jump_hi_log2"]
    assert (row["first_t50_step"], row["last_t50_step"]) == (members[0]["t50_step"], members[-1]["t50_step"])


def test_a_member_that_never_rises_counts_as_the_last():
    row, members = family_row(5, 8, 11, None)
    assert (row["n_members"], row["n_emerged"], row["emerged"]) == (4, 3, True)
    assert row["t50_log2"] == pytest.approx(np.mean([members[1]["t50_log2"], members[2]["t50_log2"]]))
    half, _ = family_row(5, 8, None, None)
    assert (half["emerged"], "no_emergence" in half["flags"]) == (False, True)
    assert "t50_step" not in half


def test_a_family_is_paired_and_its_members_are_not():
    rng = np.random.default_rng(9)
    members = [trajectory(f"t{n}", "icl", documents(rng, 9), f"p{n}") for n in range(2)]
    _, pairs = analysed(trajectory("h", "heads", documents(rng, 5)), family("f", members, headline=True), *members)
    assert [(p["heads"], p["icl"], p["decision"]) for p in pairs] == [("h", "f", "heads_lead")]


def test_documents_that_are_all_alike_at_early_checkpoints_are_assessed():
    """As at initialisation, where every answer is the same: no sampling noise there, and a rise later."""
    rng = np.random.default_rng(11)
    values = np.where(X < 7, 0.0, sigmoid(X, 9) + rng.normal(0, 0.1, (40, len(X))))
    row, _ = flags(values)
    assert row["emerged"]
    flat = np.where(X < 7, 0.0, rng.normal(0, 0.1, (40, len(X))))
    assert not flags(flat)[0]["emerged"]
