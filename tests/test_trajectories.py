"""Series out of a run made by hand: which heads are chosen, on which documents, and what is drawn."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from conftest import composed
from sih.analysis import curves

from sih.config import TaskConfig
from sih.results.cells import key_of
from sih.results.run import Record, Run
from sih.results.trajectories import Trajectories
from sih.scores import described
from sih.scores.events import sums
from sih.scores.few_shot import FewShot
from sih.scores.induction import Induction
from sih.scores.loss_reduction import LossReduction
from sih.scores.relation_index import RelationIndex
from sih.texts.written import csv_text

STEPS = [0, 1, 2, 4, 8]
DOCUMENTS = [f"d{i:02d}" for i in range(12)]
# One relation r of the source s, one window w, one task t with two labels; what each score says of its tables.
ANSWERS = ("format_gained", "constrained_accuracy", "label_margin", "accuracy_beyond_format")
TASKS = {t: TaskConfig(labels=["yes", "no"], classes=[["kind", "kind"]] * 2) for t in ("t", "u")}
SCORES = {
    "induction": (Induction(4, 4, 4, 0.05), {"half": 4, "begins": False, "copied": 4}),
    "relation_index": (RelationIndex(composed().relations, 2.2, [], 0.05), {"relations": {"s": ["r"]}}),
    "loss_reduction": (LossReduction(None, 2, {"w": [0, 1, 1, 2]}, [1, 2, 0], 0.05), {}),
    "few_shot": (
        FewShot(
            shots=10, episodes=4, shots_from=5, template="", separator="", before_label="", words={"kind": []},
            tasks=TASKS, smallest_rise=0.1, smallest_margin_rise=0.25, smallest_fall_of_shots=2,
        ),
        {"tasks": {t: {"classes": 2, "shots": 10, "chance": dict.fromkeys(ANSWERS, 0.5)} for t in TASKS}},
    ),
}  # fmt: skip


def made(tmp_path, share, fixed=0.1, random=0.2, events=10, **others):
    """A run with two heads; `share(document, head, step)` is each document's relation index.

    `others` are further sums of a document, head and step, such as contextual_argmax_sum, given in the same way.
    """

    def of_head(d, h, step):
        a = share(d, h, step)
        found = {"argmax_scored": events, "argmax_sum": events * a}
        for null, level in (("null_fixed", fixed), ("null_random", random)):
            found |= {f"{null}_scored": events, f"{null}_sum": events * level, f"{null}_object_sum": events * a}
        return found | {name: of(d, h, step) for name, of in others.items()}

    settings = {score: {"score": score, "length": 4} for score in SCORES}
    record = Record(
        model={"name": "model", "source": "local", "repo": None, "seed": 0, "tokens_per_step": 1},
        weights="w", tokenizer="t", seed=0, dtype="float32", offered=STEPS, steps=STEPS,
        settings={score: key_of(setting) for score, setting in settings.items()}, sih="0",
    )  # fmt: skip
    run = Run(tmp_path / "model", record)
    possible = [["forward", "s", "r", d, events] for d in DOCUMENTS]
    columns = ["direction", "source", "relation", "document", "opportunities"]
    for score, (what, facts) in SCORES.items():
        drawn = {"opportunities.csv": csv_text(columns, possible)} if score == "relation_index" else {}
        run.scores[score].begin(settings[score], drawn)
        run.scores[score].describe({"told": "", **described(what, facts)})
    for step in STEPS:
        rows = [
            {"document": d, "source": "s", "relation": "r", "direction": "forward", "layer": 0, "head": h}
            | dict.fromkeys(sums([2.2]), 0)
            | of_head(d, h, step)
            for d in DOCUMENTS
            for h in (0, 1)
        ]
        sequences = [
            {
                "document": f"sequence-{b:03d}",
                "layer": 0,
                "head": h,
                "prefix_matching_score": 0.1 * h,
                "duplicate_token_score": 0.0,
                "previous_token_score": 0.0,
            }
            for b in range(4)
            for h in (0, 1)
        ]
        prompts = [
            {"task": t, "shots": shots, "document": f"{t}/q{i}"} | dict.fromkeys(ANSWERS, float(i < step))
            for t in TASKS
            for shots in (1, 5, 10)
            for i in range(4)
        ]
        losses = [
            {"score": "loss_reduction", "task": "w", "document": d, "value": -0.1 * step}
            for d in [*DOCUMENTS, DOCUMENTS[0]]
        ]
        tables = {
            "relation_index": {"relation_documents": rows},
            "induction": {
                "induction_documents": sequences,
                "induction_heads": [{"layer": 0, "head": h, "copying_score": 0.0} for h in (0, 1)],
            },
            "few_shot": {
                "few_shot_documents": prompts,
                "few_shot_episodes": [
                    {"task": t, "document": f"{t}/q{i}", "first_in_format": 11 - step} for t in TASKS for i in range(4)
                ],
            },
            "loss_reduction": {
                "loss_documents": losses,
                "loss_curve": [
                    {"position": t, "n": 2, "value": 5 - step / 4, "ci_low": 2.0, "ci_high": 6.0, "chance": 5.0}
                    for t in (0, 1, 3)
                ],
            },
        }
        for score, of_score in tables.items():
            written = {name: pa.Table.from_pylist(table) for name, table in of_score.items()}
            run.scores[score].write(step, written, {"step": step, "shape": {"layers": 1, "heads": 2}})
    run.write_record()
    options = composed("emergence.top_heads=0.5", "emergence.min_events=20").emergence
    return Trajectories(Run.open(run.root), options)


def named(data, name):
    return next(s for s in data.series if s.name == name)


def test_heads_are_chosen_on_one_half_and_drawn_on_the_other(tmp_path):
    """Head 1 shines on the choosing documents alone: it is chosen, and what is drawn shows it does not shine."""
    probe = made(tmp_path / "probe", lambda d, h, step: 0.3)
    chosen_on = probe._half(DOCUMENTS, "texts")
    assert len(chosen_on) == 6
    data = made(tmp_path, lambda d, h, step: 0.9 if h == 1 and d in chosen_on else 0.3)
    series = named(data, "relation_index/s/r")
    assert series.heads == ("L0H1",)
    assert not set(series.documents) & chosen_on
    assert set(series.documents) | chosen_on == set(DOCUMENTS)
    np.testing.assert_allclose(series.value_C, 0.3, rtol=1e-6)
    np.testing.assert_allclose(named(data, "relation_index (s)").value_C, 0.3, rtol=1e-6)


def test_the_larger_null_is_the_one_to_exceed(tmp_path):
    np.testing.assert_allclose(named(made(tmp_path / "a", lambda *_: 0.3), "relation_index/s/r").null_C, 0.2)
    fixed = named(made(tmp_path / "b", lambda *_: 0.3, fixed=0.4), "relation_index/s/r")
    np.testing.assert_allclose(fixed.null_C, 0.4)
    np.testing.assert_allclose(fixed.excess_DC, -0.1)


def test_a_null_is_compared_at_the_events_that_have_it(tmp_path):
    """The matched null exists at later events, where the index is .1 too: the index of .3 over all is not above it."""
    later = {"null_matched_scored": 4, "null_matched_sum": 0.4, "null_matched_object_sum": 0.4}
    paired = {name: lambda *_, value=value: value for name, value in later.items()}
    series = named(made(tmp_path, lambda *_: 0.3, **paired), "relation_index/s/r")
    np.testing.assert_allclose(series.value_C, 0.3)
    np.testing.assert_allclose(series.excess_DC, 0, atol=1e-12)


def test_a_head_with_few_events_is_not_lost_in_the_pool(tmp_path):
    """Head 0 has an index of .5 at 4 events a document, head 1 one of .2 at 100: together .35, not .21."""
    count = {0: 4, 1: 100}
    sums_ = {"argmax_scored": lambda d, h, _: count[h], "argmax_sum": lambda d, h, _: count[h] * (0.5, 0.2)[h]}
    for null in ("null_fixed", "null_random"):
        sums_ |= {f"{null}_scored": lambda d, h, _: count[h], f"{null}_sum": lambda *_: 0.0}
        sums_[f"{null}_object_sum"] = sums_["argmax_sum"]
    data = made(tmp_path, lambda *_: 0.0, **sums_)
    data.options = dataclasses.replace(data.options, top_heads=1.0, few_heads=1)
    series = named(data, "relation_index (s)")
    assert series.heads == ("L0H0", "L0H1")
    np.testing.assert_allclose(series.value_C, 0.35)
    assert series.events_C.tolist() == [6 * 104] * len(STEPS)
    few = named(data, "relation_index (s)/top_1")
    assert (few.heads, few.headline) == (("L0H0",), False)
    np.testing.assert_allclose(few.value_C, 0.5)


def test_every_reading_of_the_index_follows_the_same_heads(tmp_path):
    """The embedding's reading rises in head 1 while the head's actual output falls: both are series, of head 1."""
    fall = {
        "contextual_argmax_scored": lambda *_: 10,
        "contextual_argmax_sum": lambda d, h, step: 10 * (0.3 - 0.03 * step) if h else 9.0,
    }
    data = made(tmp_path, lambda d, h, step: 0.1 + 0.1 * step * h, **fall)
    current, contextual = (named(data, f"relation_index{w} (s)") for w in ("", "_contextual"))
    assert current.heads == contextual.heads == ("L0H1",)
    np.testing.assert_allclose(contextual.value_C, [0.3 - 0.03 * step for step in STEPS])
    assert contextual.heads_of == current.name


def test_values_are_ratios_of_sums_over_documents(tmp_path):
    data = made(tmp_path, lambda d, h, step: int(d[1:]) / 100)
    series = named(data, "relation_index/s/r")
    want = np.mean([int(d[1:]) / 100 for d in series.documents])
    np.testing.assert_allclose(series.value_C, want, rtol=1e-6)


def test_a_relation_without_support_is_left_out_by_name(tmp_path):
    data = made(tmp_path, lambda *_: 0.3, events=3)  # six documents of three events: 18, fewer than 20
    assert not [s for s in data.series if s.name.startswith("relation_index")]
    assert data.left_out == ["relation_index (s)", "relation_index/s/r"]


def test_prefix_matching_and_its_chance(tmp_path):
    series = named(made(tmp_path, lambda *_: 0.3), "prefix_matching")
    assert series.heads == ("L0H1",)
    assert len(series.documents) == 2
    np.testing.assert_allclose(series.value_C, 0.1, rtol=1e-6)
    assert series.chance == pytest.approx(np.mean([1 / 5, 1 / 6, 1 / 7]))


def test_few_shot_series_are_of_one_task_from_five_shots_and_pooled_by_episode(tmp_path):
    series = named(made(tmp_path, lambda *_: 0.3), "constrained_accuracy/t")
    assert series.documents == ("t/q0", "t/q1", "t/q2", "t/q3")
    np.testing.assert_array_equal(series.denominator_DC, 2)  # shots 5 and 10, not 1
    np.testing.assert_allclose(series.value_C, [0, 0.25, 0.5, 1, 1])


def test_a_family_is_the_mean_of_its_tasks_and_the_headline(tmp_path):
    data = made(tmp_path, lambda *_: 0.3)
    found = named(data, "constrained_accuracy")
    assert found.members == ("constrained_accuracy/t", "constrained_accuracy/u")
    assert (found.headline, named(data, "constrained_accuracy/t").headline) == (True, False)
    assert (found.chance, len(found.documents)) == (0.5, 8)
    np.testing.assert_allclose(found.value_C, [0, 0.25, 0.5, 1, 1])


def test_pieces_of_one_text_are_resampled_together(tmp_path):
    series = named(made(tmp_path, lambda *_: 0.3), "loss_reduction/w")
    assert len(series.documents) == 12
    assert series.denominator_DC[0].tolist() == [2] * 5
    assert series.sign == -1
    np.testing.assert_allclose(series.value_C, [-0.1 * s for s in STEPS])


def test_curves_over_the_context_at_chosen_steps(tmp_path):
    data = made(tmp_path, lambda *_: 0.3)
    (curve,) = (c for c in data.curves if c.figure == "positions")
    assert (curve.figure, curve.x) == ("positions", "position")
    table = data.curve(curve, [1, 8])
    assert sorted(set(table["step"])) == [1, 8]
    assert list(table[table["step"] == 8]["value"]) == [3, 3, 3]
    drawn = curves.draw(data, {"steps": STEPS}, tmp_path, "a run")
    assert [file.name for file in drawn] == ["curves_positions.png", "curves_positions.svg"]
    text = drawn[1].read_text()
    assert all(f"<!-- step {step} -->" in text for step in STEPS)
    assert "<!-- tokens before (log scale) -->" in text


def test_lines_spread_over_training():
    steps = [0, *(2**n for n in range(10)), *range(1000, 143001, 1000)]
    assert curves.spread(steps) == [0, 8, 128, 1000, 13000, 143000]
    assert curves.spread([7]) == [7]
