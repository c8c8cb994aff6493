"""Knock-outs: sets and their controls, effects against whole forward passes, and the second pass of a sweep."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import composed, random_module, run_at
from scipy.stats import gamma, norm, t

from sih import sweep
from sih.checkpoints import corpus
from sih.checkpoints.tiny import held_out
from sih.errors import CheckpointError, SihError
from sih.models import replacing
from sih.models.model import Model
from sih.results.claims import Claims
from sih.running import loop, survey
from sih.scores import Given, Ranking, Series, outcomes
from sih.scores.head_sets import ANYWHERE, LAYER, NAMED, NONE, Sizes, best, matching, rank_p, relabelled, sets_of
from sih.scores.knock_outs import OPERATIONS, knocked_out
from sih.scores.making import made
from sih.scores.tables import paired_interval

N = len(corpus.VOCABULARY)
SIZES = Sizes(share=0.02, fewest=3, few=2, leading=0.02, controls=20)
OPTIONS = ["icl.effects.documents=3", "icl.effects.sequences=3", "icl.effects.length=10", "icl.effects.episodes=4"]


def free_heads(layers: int, heads: int, *named) -> list[list[tuple[int, int]]]:
    return [[(n, h) for h in range(heads) if (n, h) not in named] for n in range(layers)]


def test_controls_have_as_many_heads_in_each_layer_and_no_named_one():
    named = [(1, 2), (1, 5), (3, 0)]
    drawn, matched = matching(named, free_heads(6, 8, *named), (6, 8), 20, 0)
    assert matched == LAYER
    assert len({frozenset(s) for s in drawn}) == len(drawn) == 20
    for heads in drawn:
        assert Counter(layer for layer, _ in heads) == {1: 2, 3: 1}
        assert not {*heads} & {*named}
    assert drawn == matching([(1, 0), (3, 3), (1, 1)], free_heads(6, 8, *named), (6, 8), 20, 0)[0], (
        "the profile decides"
    )


def test_few_free_heads_are_matched_otherwise_and_that_is_said():
    named = [(0, 0), (0, 1)]
    drawn, matched = matching(named, free_heads(2, 5, *named, (0, 2)), (2, 5), 20, 0)
    assert (matched, len({*drawn})) == (ANYWHERE, 20)  # 1 set of the 2 free heads in the layer, 21 of the 7 in any
    drawn, matched = matching([(0, 0)], free_heads(2, 20, (0, 0)), (2, 20), 20, 0)
    assert (matched, len({*drawn})) == (LAYER, 19)  # all that there are, and enough to decide
    named = [(0, 0), (0, 1), (0, 2)]
    drawn, matched = matching(named, free_heads(2, 4, *named, (1, 0)), (2, 4), 20, 0)
    assert (matched, len({*drawn})) == (NAMED, 10)  # all sets of 3 of the 5 other heads
    assert all(not {*heads} & {*named} for heads in drawn)
    assert matching(named, free_heads(1, 4, *named), (1, 4), 20, 0) == ((), NONE)
    many = [(n, h) for n in range(4) for h in range(10)]
    drawn, matched = matching(many[:8], free_heads(8, 40, *many[:8]), (8, 40), 20, 0)
    assert (matched, len({*drawn})) == (LAYER, 20)  # more possible sets than can be listed


def test_heads_below_their_null_are_in_no_group():
    excess = np.array([[0.1, np.nan, 0.04], [0.3, -0.2, 0.05]])
    assert best(excess, 0.05) == [(1, 0), (0, 0), (1, 2)]
    low = np.full((2, 3), 0.01)
    rankings = {"a": Ranking(low, excess), "b": Ranking(low, low)}
    sets, empty = sets_of(rankings, {"a": 0.05, "b": 0.05}, SIZES, 0)
    assert {(s.group, s.chosen) for s in sets} == {("a", "last")}
    assert empty == [("a", "here"), ("b", "here"), ("b", "last")]


def test_groups_apart_hold_no_head_that_leads_another_group():
    rng = np.random.default_rng(0)
    first, second = rng.random((6, 8)), rng.random((6, 8))
    second[np.unravel_index(first.argmax(), first.shape)] = 2  # the best head of one is the best of the other
    rankings = {"a": Ranking(first, first), "b": Ranking(second, second)}
    sets, empty = sets_of(rankings, {"a": 0, "b": 0}, SIZES, 0)
    of = {(s.group, s.kind): s.heads for s in sets if s.chosen == "here" and s.kind != "single"}
    assert not empty
    shared = of["a", "group"][0]
    assert shared == of["b", "group"][0]
    assert shared not in of["a", "apart"] + of["b", "apart"]
    assert of["a", "apart"] == tuple(h for h in best(first, 0) if h != shared)[:3]
    assert of["a", "few"] == of["a", "group"][:2]
    named = {h for s in sets for h in s.heads if s.kind == "group"}
    assert not named & {h for s in sets if s.kind != "random" for control in s.controls for h in control}


def test_at_the_last_checkpoint_all_groups_change_places_together():
    """Each draw maps every head to one of its own layer, the same for all groups, and no two heads to one."""
    rng = np.random.default_rng(0)
    first, second, last = rng.random((3, 6, 8))
    assert "random" not in {s.kind for s in sets_of({"a": Ranking(first, last)}, {"a": 0}, SIZES, 0)[0]}
    rankings = {"a": Ranking(first, first), "b": Ranking(second, second), "c": Ranking(-first, -first)}
    sets, _ = sets_of(rankings, dict.fromkeys("abc", 0), SIZES, 0)
    groups = {s.group: s for s in sets if s.kind == "random"}
    assert {g: s.heads for g, s in groups.items()} == {
        s.group: s.heads for s in sets if (s.kind, s.chosen) == ("group", "last")
    }
    assert set(groups) == {"a", "b"}, "c has no head above chance"
    for draw in range(20):
        to = {}
        for s in groups.values():
            for head, other in zip(s.heads, s.controls[draw], strict=True):
                assert to.setdefault(head, other) == other
                assert other[0] == head[0]
        assert len({*to.values()}) == len(to)
    drawn = relabelled([((0, 0),), ((3, 1), (3, 2))], (6, 8), 4000, 0)
    counts = Counter(other for ((_, other),) in drawn[0])
    assert set(counts) == set(range(8))
    assert max(counts.values()) < 600, "any head of the layer is as likely"


@pytest.fixture(scope="module")
def model():
    return Model(random_module(N, layers=3, heads=4, width=32), torch.device("cpu"))


@pytest.fixture(scope="module")
def score():
    return made(composed("model=tiny", *OPTIONS).scores)["knock_outs"]


@pytest.fixture(scope="module")
def given(corpus_tokenizer):
    train = composed("model=tiny").model.train
    followed = [Series("a", "a", "heads", "t", "v", "u", "p", 0.0), Series("b", "b", "heads", "t", "v", "u", "p", 0.0)]
    return Given(corpus_tokenizer, N, N, 96, 0, {}, lambda n: held_out(train, 0, n), 0, followed)


@pytest.fixture(scope="module")
def inputs(score, given):
    return score.draw(given).inputs[0]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_effects_are_those_of_whole_passes(model, inputs, operation):
    mean_LHK = replacing.mean_outputs(model, inputs.reference_BT, 500)
    sets = [((2, 1),), ((0, 3), (2, 0)), ((1, 1), (1, 2))]
    for reading in inputs.readings:
        clean_NB, changed_SNB = knocked_out(model, reading, sets, operation, mean_LHK, inputs.reference_BT, 10_000)
        ids = reading.ids_BT
        others = inputs.reference_BT[torch.arange(len(ids)) % len(inputs.reference_BT), : ids.shape[1]]
        instead = {
            "mean": mean_LHK, "patterns": mean_LHK, "zero": 0 * mean_LHK, "resampled": replacing.outputs(model, others)
        }[operation]  # fmt: skip
        patterns = replacing.patterns(model, ids)
        for heads, changed_NB in zip(sets, changed_SNB, strict=True):
            forced = replacing.patterns_forced(model, patterns if operation == "patterns" else {})
            with torch.no_grad(), forced, replacing.replaced(model, heads, instead):
                want_NB = outcomes.read(model, reading, model.hidden(ids)).double().numpy()
            np.testing.assert_allclose(changed_NB, want_NB, rtol=1e-5, atol=1e-5)
            assert np.abs(changed_NB - clean_NB).max() > 1e-3


def test_a_set_that_changes_no_logit_is_an_error(model, inputs):
    mean_LHK = replacing.mean_outputs(model, inputs.reference_BT, 500)
    module = random_module(N, layers=3, heads=4, width=32)
    with torch.no_grad():
        module.gpt_neox.layers[1].attention.dense.weight[:, 8:16] = 0  # head 1 of layer 1 writes nothing
    silent = Model(module, torch.device("cpu"))
    with pytest.raises(CheckpointError, match="taking out L1H1 changes no scored logit"):
        knocked_out(silent, inputs.readings[0], [((1, 1),)], "mean", mean_LHK, inputs.reference_BT, 1000)


def test_tables_hold_sets_controls_singles_and_documents(model, score, given):
    drawn = score.draw(given)
    rng = np.random.default_rng(1)
    rankings = {name: Ranking(*rng.random((2, 3, 4))) for name in "ab"}
    tables = {n: t.to_pandas() for n, t in score.measure(model, drawn.inputs, 2000, rankings).items()}
    sets, documents = tables["knock_out_sets"], tables["knock_out_documents"]
    groups = sets[(sets["kind"] == "group") & (sets["operation"] == "mean")]
    assert len(groups) == 2 * 2 * len(drawn.facts["outcomes"])
    for _, row in groups.iterrows():
        mine = documents[(documents[["group", "chosen", "kind", "operation", "outcome"]]
                          == row[["group", "chosen", "kind", "operation", "outcome"]].to_numpy()).all(axis=1)]  # fmt: skip
        assert mine["effect"].mean() == pytest.approx(row["effect"], rel=1e-4, abs=1e-5)
        assert (mine["effect"] - mine["controls"]).mean() == pytest.approx(row["beyond"], rel=1e-3, abs=1e-5)
        assert row["low"] <= row["effect"] <= row["high"]
        controls = tables["knock_out_controls"]
        of_row = controls[(controls[["group", "chosen", "kind", "outcome"]]
                           == row[["group", "chosen", "kind", "outcome"]].to_numpy()).all(axis=1)]["effect"]  # fmt: skip
        assert len(of_row) == row["n_controls"] > 0
        sign = 1 if row["outcome"] in outcomes.LESS_IS_MORE else -1
        at_least = (sign * of_row >= sign * row["effect"] - 1e-6).sum()
        assert row["rank_p"] == pytest.approx((1 + at_least) / (1 + len(of_row)))
    singles = sets[(sets["kind"] == "single") & (sets["operation"] == "mean")]
    one = groups.iloc[0]
    alone = singles[(singles["group"] == one["group"]) & (singles["chosen"] == one["chosen"])
                    & (singles["outcome"] == one["outcome"])]  # fmt: skip
    assert one["singles"] == pytest.approx(alone["effect"].sum(), rel=1e-4)
    zero = sets[sets["operation"] == "zero"]
    assert set(zero["kind"]) == {"group"}
    assert zero["rank_p"].isna().all()
    for series in score.series(drawn.facts):
        assert {*series.columns()} <= {*score.tables[series.table]}


def test_the_rank_p_is_exact():
    """Over sets drawn like their controls, p is uniform on k / 21: P(p <= k / 21) = k / 21."""
    rng = np.random.default_rng(0)
    p = np.array([rank_p(x[0], x[1:]) for x in rng.standard_gamma(0.5, size=(21_000, 21))])
    share = [(p <= k / 21 + 1e-9).mean() for k in range(1, 22)]
    np.testing.assert_allclose(share, np.arange(1, 22) / 21, atol=4 * np.sqrt(0.25 / len(p)))
    assert np.isnan(rank_p(1.0, []))


@pytest.mark.parametrize("tails", ["normal", "long"])
def test_paired_intervals_hold_their_level(tails):
    """Over 24 documents, differences with normal or long tails (a gamma of shape 1): 95 % within Monte Carlo error."""
    rng = np.random.default_rng(0)
    runs = 800
    draw = norm(0.3, 1).rvs if tails == "normal" else gamma(1.0).rvs
    mean = 0.3 if tails == "normal" else 1.0
    ends = np.array([paired_interval(draw(24, random_state=rng), seed=n) for n in range(runs)])
    covered = ((ends[:, 0] <= mean) & (mean <= ends[:, 1])).mean()
    assert 0.92 <= covered <= 0.98
    few = np.array([1.0] + [0.0] * 47)
    low, high = paired_interval(few, 0)
    assert (low, high) == pytest.approx(t(47, few.mean(), few.std(ddof=1) / 48**0.5).interval(0.95))
    assert np.isnan(paired_interval(np.ones(1), 0)).all()
    assert paired_interval(np.ones(5), 0) == (1.0, 1.0)


KNOCK_OUTS = ["interventions=all", "steps=[0,4,8]", "scores=[induction,knock_outs]"]


def test_a_second_pass_follows_the_first_and_continues_where_it_was(small, monkeypatch):
    """Killed in the second pass: the same command measures the rest alone. Heads chosen at the last step are the same."""
    config = small(*KNOCK_OUTS)
    measured, tables = [], loop._Loop._tables

    def killed(self, name, model, *more):
        measured.append(name)
        if len(measured) == 5:
            raise KeyboardInterrupt
        return tables(self, name, model, *more)

    monkeypatch.setattr(loop._Loop, "_tables", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(config)
    assert measured == ["induction"] * 3 + ["knock_outs"] * 2
    assert not Claims(run_at(config).root, 300).living()
    assert sweep.run(config) == 0
    assert measured[5:] == ["knock_outs"] * 2
    run = run_at(config)
    setting = run.scores["knock_outs"].setting
    assert setting["follows"]["induction"] == run.record.settings["induction"]
    assert setting["last_step"] == 8
    found = run.table("knock_out_groups").set_index(["chosen", "group"])
    assert found.loc["last"].groupby("group", observed=True)["heads"].nunique().max() <= 1


def test_interventions_are_at_their_own_checkpoints(small):
    config = small("interventions=[0,8]", "scores=[induction,knock_outs,attribution]")
    assert sweep.run(config) == 0
    run = run_at(config)
    assert run.scores["induction"].steps() == [0, 1, 2, 4, 8]
    assert run.scores["knock_outs"].steps() == run.scores["attribution"].steps() == [0, 8]
    from sih import status

    assert status.run(config) == 0


def test_without_a_result_to_choose_heads_by_the_cell_fails_and_says_so(small, monkeypatch):
    config = small(*KNOCK_OUTS)
    tables = loop._Loop._tables

    def fails(self, name, model, *more):
        if name == "induction" and self.work.cells(name).steps() == [0, 4]:
            raise CheckpointError("broken")
        return tables(self, name, model, *more)

    monkeypatch.setattr(loop._Loop, "_tables", fails)
    assert sweep.run(config) == 1
    failed = run_at(config).failed()
    assert failed[8]["induction"] == "broken"
    for step in (0, 4, 8):
        assert failed[step]["knock_outs"] == "heads are chosen by induction, which has no result at step 8 (the last)"


def test_a_models_own_list_of_steps_is_cut_to_the_series(small):
    assert survey.intervened_at(composed(), [0, 1, 384, 1408]) == [0, 384, 1408]
    assert survey.intervened_at(composed("model.train.steps=[0,1,2]"), [0, 1, 2]) == [0, 2]
    with pytest.raises(SihError, match="step 384: no such checkpoint"):
        survey.intervened_at(composed("interventions=[0,384]"), [0, 1, 2])


def test_none_leaves_interventions_out(small):
    with pytest.raises(SihError, match="interventions=none leaves no score"):
        sweep.run(small("scores=[knock_outs]"))


def test_what_the_folder_says_is_what_was_measured_on(small):
    config = small(*KNOCK_OUTS, "steps=[8]")
    assert sweep.run(config) == 0
    cells = run_at(config).scores["knock_outs"]
    rows = [json.loads(line) for line in (cells.root / "effect_inputs.jsonl").read_text().splitlines()]
    assert {row["document"].split("-")[0].split("/")[0] for row in rows} >= {"text", "sequence", "reference"}
