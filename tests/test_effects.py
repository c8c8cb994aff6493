"""What is made of knock-outs over training: decisions, first-order checks, and the views of a run that has them."""

import json

import numpy as np
import pytest
from conftest import run_at

from sih import sweep
from sih.emergence.answer import effects_clause
from sih.emergence.effects import agreement, decided, family_p, overlap, places, random_sets
from sih.emergence.time_axis import TimeAxis
from sih.results.trajectories import Trajectories
from sih.tracker.contents import headline_scalars

STEPS = [0, 8, 64, 512]


def row(effect, most, n_controls=20, clean=(1.0, 1.0, 1.0, 1.0), sign=-1, width=0.01):
    """A group's row: effects against control sets that reach `most`; half of them beyond their mean."""
    effect, most = np.array(effect, dtype=float), np.array(most, dtype=float)
    beats = sign * effect > sign * most
    beyond = effect - most / 2
    return {
        "sign": sign, "chance": 0.0, "effect": effect, "low": effect - width, "high": effect + width,
        "controls": most / 2, "controls_low": np.minimum(0, most), "controls_high": np.maximum(0, most),
        "beyond": beyond, "beyond_low": beyond - width, "beyond_high": beyond + width,
        "rank_p": np.where(beats, 1 / (1 + n_controls), 0.5), "n_controls": [n_controls] * len(STEPS),
        "main": True, "p_family": 1 / (1 + n_controls),
        "clean": clean, "clean_low": np.array(clean) - 0.1, "clean_high": np.array(clean) + 0.1, "singles": effect,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "decision", "step", "reason"),
    [
        (row([0, -0.5, -0.6, -0.7], [-0.1] * 4), "more", 8, ""),
        (row([-0.5] * 4, [-0.1] * 4), "more", 0, ""),
        (row([0, -0.5, 0, -0.7], [-0.1] * 4), "more", 512, ""),
        (row([0, 0, 0, 0.4], [-0.1] * 4), "no_more", None, ""),
        (row([0, -0.5, -0.6, 0], [-0.1] * 4), "not_resolved", None, "at some checkpoints, but not at the last"),
        (row([-0.5] * 4, [-0.1] * 4, n_controls=7), "not_resolved", None, "7 control sets"),
        (row([-0.5] * 4, [-0.1] * 4, clean=[0.05] * 4), "not_resolved", None, "the clean score is at chance"),
        (row([-0.5] * 4, [-0.1] * 4, clean=[0, 0, 1, 1]), "more", 64, ""),  # earlier ones do not count
        (row([-0.5] * 4, [-0.1] * 4, width=0.6), "no_more", None, ""),  # outranks all, but documents do not agree
        (row([-0.5] * 4, [-0.1] * 4) | {"p_family": 0.1}, "not_resolved", None, "p 0.10 over all groups"),
        (row([-0.5] * 4, [-0.1] * 4) | {"p_family": np.nan, "main": False}, "more", 0, ""),
        (row([0, 0.5, 0.6, 0.7], [0.1] * 4, clean=[-1.0] * 4, sign=1), "more", 8, ""),  # a loss
    ],
)
def test_from_which_step_on_a_group_costs_more_than_its_controls(given, decision, step, reason):
    found = decided(given, STEPS)
    assert (found["decision"], found["from_step"]) == (decision, step)
    assert found["reason"].startswith(reason)
    assert found["few_controls"] == (reason == "7 control sets")


def test_the_corrected_p_is_a_rank_among_the_costliest_of_all_groups():
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=20), rng.normal(size=20), rng.normal(size=20) * 100, np.zeros(20)]
    cost, outcome = [30.0, 1.0, 50.0, 0.0], ["a", "a", "b", "c"]
    found = family_p(cost, draws, outcome)
    beyond = [np.array([c, *x]) - np.mean([c, *x]) for c, x in zip(cost, draws, strict=True)]

    def t(g, k):  # the slow way; draw 0 is the groups themselves
        of_outcome = np.concatenate([beyond[n] for n in range(4) if outcome[n] == outcome[g]])
        return beyond[g][k] / (np.sqrt((of_outcome**2).mean()) or 1)

    furthest = [max(t(g, k) for g in range(4)) for k in range(21)]
    for g in range(4):
        assert found[g] == sum(far >= t(g, 0) - 1e-9 for far in furthest) / 21
    assert found[0] == 1 / 21
    assert min(found[1:]) > 0.05
    other_unit = family_p([3000, 100, 50, 0], [draws[0] * 100, draws[1] * 100, *draws[2:]], outcome)
    np.testing.assert_array_equal(other_unit, found)
    assert len(family_p([], [], [])) == 0


def test_random_sets_have_as_many_heads_in_each_layer():
    rng = np.random.default_rng(0)
    linear = rng.normal(size=(3, 6))
    found = random_sets(linear, [(0, 1), (2, 0), (2, 5)], 20_000, 0)
    assert found.mean() == pytest.approx(linear[0].mean() + 2 * linear[2].mean(), abs=0.03)
    lowest = linear[0].min() + np.sort(linear[2])[:2].sum()
    assert found.min() == pytest.approx(lowest)  # no head twice
    assert np.isclose(random_sets(np.eye(3)[:1], [(0, 0), (0, 1), (0, 2)], 5, 0), 1).all()


def test_agreement():
    linear = np.array([0.1, 0.2, -0.3, 0.4])
    assert agreement(linear, 1.5 * linear) == {
        "n": 4,
        "r": pytest.approx(1),
        "slope": pytest.approx(1.5),
        "trusted": True,
    }
    assert not agreement(linear, 3 * linear)["trusted"]
    assert not agreement(linear, -linear)["trusted"]
    assert np.isnan(agreement(linear[:2], linear[:2])["r"])
    assert places("L0H1 L12H15") == [(0, 1), (12, 15)]
    assert overlap({"a": ["L0H1", "L1H0"], "b": ["L1H0"]})["shared"] == [[2, 1], [1, 1]]


def test_the_answer_says_what_a_knock_out_costs_and_what_is_open():
    common = {"main": True, "outcome_label": "label margin", "sign": -1}
    rows = [
        common | {"group": "a", "decision": "more", "reason": "", "from_step": 64, "effect": [0, -0.31],
                  "controls": [0, -0.02], "n_controls": [20, 20]},
        common | {"group": "b", "decision": "no_more", "reason": ""},
        common | {"group": "c", "decision": "not_resolved", "reason": "the clean score is at chance",
                  "few_controls": False},
        common | {"group": "d", "decision": "no_more", "reason": ""},
    ]  # fmt: skip
    assert effects_clause({"rows": rows, "no_heads": ["e", "f"]}, ["a", "b", "c", "e"]) == (
        "Knocking out the top heads, the cost in label margin: a 0.31 nats at the last checkpoint (matched sets 0.02), more "
        "than each of 20 from step 64 on; b no more than matched sets at any checkpoint; c (the clean score is at "
        "chance) not resolved. No head to knock out stands above its null for e"
    )
    assert "more than each of 20 from 640 tokens on" in effects_clause(
        {"rows": rows, "no_heads": []}, ["a"], TimeAxis(10)
    )
    assert effects_clause(None, ["a"]) == ""
    few = common | {"decision": "not_resolved", "reason": "7 control sets", "few_controls": True, "effect": [0, -0.3],
                    "low": [0, -0.4], "high": [0, -0.2], "controls_low": [0, -0.9], "controls_high": [0, 0.1],
                    "n_controls": [7, 7], "matched": "any layer"}  # fmt: skip
    none = few | {"n_controls": [0, 0], "matched": "none", "controls_low": [None, None], "controls_high": [None, None]}
    much = few | {"group": "c", "effect": [0, -1.5], "low": [0, -1.7], "high": [0, -1.3]}
    rows = [few | {"group": "a"}, none | {"group": "b"}, much, much | {"outcome_label": "context gain"}]
    assert effects_clause({"rows": rows, "no_heads": []}, ["a", "b", "c"]) == (
        "Knocking out the top heads is not decided by 0 to 7 control sets (in any layer or none at all); more than all of "
        "them costs c 1.50 nats of label margin [1.30, 1.70] and 1.50 nats of context gain [1.30, 1.70]"
    )
    assert effects_clause({"rows": rows[:1], "no_heads": []}, ["a"]) == (
        "Knocking out the top heads is not decided by 7 control sets (in any layer); more than all of them costs no group"
    )


@pytest.mark.slow
def test_a_run_with_knock_outs_shows_them(small):
    """With every head eligible, since none has risen in eight steps."""
    config = small(
        "interventions=all", "scores=[induction,attribution,knock_outs]", "scores.induction.smallest_rise=-1",
        "figures=true",
    )  # fmt: skip
    assert sweep.run(config) == 0
    run = run_at(config)
    emergence = json.loads((run.root / "emergence.json").read_text())
    effects = emergence["effects"]
    assert effects["steps"] == [0, 1, 2, 4, 8]
    assert {r["group"] for r in effects["rows"]} == {"prefix_matching", "previous_token"}
    assert "prefix_matching" in emergence["answer"].split("Knocking out the top heads")[1]
    for r in effects["rows"]:
        table = run.table("knock_out_sets", [8])
        mine = table[(table["group"] == r["group"]) & (table["outcome"] == r["outcome"]) & (table["kind"] == "group")
                     & (table["chosen"] == "last") & (table["operation"] == "mean")]  # fmt: skip
        assert r["effect"][-1] == pytest.approx(float(mine["effect"].iloc[0]), rel=1e-5)
    fits = [a for a in effects["agreement"] if a["outcome"] == "repeated_loss"]
    assert min(a["r"] for a in fits) > 0.9, "on nearly random weights, effects are linear"
    data = Trajectories(run, config.emergence)
    (series,) = [t for t in data.effects if t.name == "without prefix_matching/repeated_loss"]
    (of_rows,) = [r for r in effects["rows"] if r["series"] == series.name]
    np.testing.assert_allclose(series.value_C, of_rows["effect"], rtol=1e-5)
    np.testing.assert_allclose(series.excess_DC.mean(0), of_rows["beyond"], rtol=1e-3, atol=1e-7)
    for name in ("effects", "loads", "effects_check"):
        assert (run.root / "figures" / f"{name}.png").stat().st_size > 10_000
    assert "Does in-context learning need these heads?" in (run.root / "report.html").read_text()
    logged = headline_scalars(data, emergence)[-1]
    assert logged["cost/prefix_matching_repeated_loss"] == pytest.approx(of_rows["effect"][-1])
