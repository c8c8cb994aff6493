import json
import re
from copy import deepcopy
from itertools import product

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import composed, random_module
from hypothesis import given
from hypothesis import strategies as st

from sih.checkpoints import corpus
from sih.config import TaskConfig
from sih.errors import CheckpointError, SihError
from sih.models.model import Model
from sih.models.tokenizer import start_id
from sih.scores import Given, described, few_shot, loss_reduction
from sih.scores.loss_reduction import LossReduction
from sih.scores.making import made
from sih.texts import episodes, long, wikitext

WINDOWS = {"a": [0, 4, 4, 8], "b": [0, 4, 15, 19]}
LATE = [15, 19, 9]  # late start, late stop, short start


def ids_of(count, length, seed=0):
    return torch.randint(len(corpus.VOCABULARY), (count, length), generator=torch.Generator().manual_seed(seed))


def test_losses_equal_the_loop_and_ignore_the_batch_size(model):
    ids = ids_of(5, 20)
    every = range(19)
    got = loss_reduction.token_losses(model, ids, every, batch_tokens=40)
    for row, text in zip(got, ids.tolist(), strict=True):
        np.testing.assert_allclose(row, oracle.losses(model.module, text), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got, loss_reduction.token_losses(model, ids, every, 10_000), rtol=1e-5, atol=1e-5)
    some = loss_reduction.token_losses(model, ids, [0, 7, 18], 10_000)
    np.testing.assert_allclose(some[:, [0, 7, 18]], got[:, [0, 7, 18]], rtol=1e-5, atol=1e-5)
    assert np.isnan(some[:, 1:7]).all()


def test_loss_reduction_is_late_minus_early_by_hand():
    loss = np.array([[4.0, 4, 2, 2, 1, 1], [5, 5, 5, 5, 5, 5]])
    np.testing.assert_allclose(loss_reduction.loss_reduction(loss, [0, 2, 4, 6]), [-3, 0])
    np.testing.assert_allclose(loss_reduction.loss_reduction(loss, [1, 2, 2, 3]), [-2, 0])


def test_the_last_prediction_of_a_window_fits_the_text_exactly():
    assert loss_reduction.needed_length(WINDOWS, LATE) == 20
    loss_reduction.check_context(WINDOWS, LATE, 20)
    with pytest.raises(SihError, match=r"windows\.b needs 20 tokens, but the model's context is 19"):
        loss_reduction.check_context(WINDOWS, LATE, 19)
    assert loss_reduction.needed_length(WINDOWS, [15, 30, 9]) == 31
    with pytest.raises(SihError, match=r"context_gain needs 31 tokens, but the model's context is 30"):
        loss_reduction.check_context(WINDOWS, [15, 30, 9], 30)


def test_only_what_a_window_or_the_curve_reads_is_read():
    windows = {"a": [0, 2, 2, 4], "b": [1, 2, 17, 19]}
    assert loss_reduction.positions_read(windows, [17, 18, 5]) == [0, 1, 2, 3, 7, 15, 17, 18]
    assert loss_reduction.positions_read(windows, [11, 13, 5]) == [0, 1, 2, 3, 7, 11, 12, 15, 17, 18]


def test_log_spaced_positions():
    assert loss_reduction.log_spaced_positions(20) == [0, 1, 3, 7, 15, 19]
    assert loss_reduction.log_spaced_positions(1) == [0]


def drawn_from(tmp_path, tokenizer, texts, start, context=96, late=(64, 95, 48)):
    """The score and its inputs for these texts, at the positions of the generated language."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    score = LossReduction(str(file), 60, {"w": [0, 16, 64, 95]}, list(late), 0.05)
    given = Given(tokenizer, len(tokenizer), len(tokenizer), context, 0, {"loss_texts": file}, None, start)
    return score, score.draw(given).inputs


def some_texts(count=6, words=110):
    """Texts of the generated language, without the token that its documents begin with."""
    return [" ".join(d.words[1:]) for d in corpus.documents(1, "test", count, words, 0, 0)]


@pytest.mark.parametrize("start", [0, None])
def test_texts_begin_with_the_start_token_and_prediction_t_is_of_their_token_t(
    model, corpus_tokenizer, tmp_path, start
):
    texts = some_texts()
    score, inputs = drawn_from(tmp_path, corpus_tokenizer, texts, start)
    assert inputs.ids_BT.shape == (6, 96)
    assert inputs.before == (start is None)
    for ids, text in zip(inputs.ids_BT.tolist(), texts, strict=True):
        own = corpus_tokenizer(text)["input_ids"]
        assert ids == ([0, *own[:95]] if start == 0 else own[:96])
    read = loss_reduction.positions_read(score.windows, score.context_gain)
    got = loss_reduction.token_losses(model, inputs.ids_BT, read, 10_000)
    for row, ids in zip(got, inputs.ids_BT.tolist(), strict=True):
        np.testing.assert_allclose(row[read], np.array(oracle.losses(model.module, ids))[read], rtol=1e-4, atol=1e-4)
    curve = score.measure(model, inputs, 10_000)["loss_curve"].to_pandas()
    assert list(curve["position"]) == [t + inputs.before for t in (0, 1, 3, 7, 15, 31, 63, 94)]
    np.testing.assert_allclose(curve["value"], got[:, [0, 1, 3, 7, 15, 31, 63, 94]].mean(0), rtol=1e-6)


def test_the_start_token_of_a_text_is_not_doubled(corpus_tokenizer):
    """Documents of the embedded series begin with it already; their later pieces get one of their own."""
    found = long.cut(["<end> the fox . a wolf .", "the cup <end> a"], corpus_tokenizer, 4, 9, 0)
    assert [corpus_tokenizer.decode(ids) for _, ids in found] == [
        "<end> the fox .", "<end> the cup <end>", "<end> a wolf .",
    ]  # fmt: skip


@pytest.mark.parametrize("start", [0, None])
def test_context_gain_equals_the_loop(model, corpus_tokenizer, tmp_path, start):
    """Each late token scored one by one: after the whole text before it, and after the stretch alone."""
    score, inputs = drawn_from(tmp_path, corpus_tokenizer, some_texts(), start)
    tables = score.measure(model, inputs, 500)
    got = tables["loss_documents"].to_pandas().query("score == 'context_gain'")
    assert list(got["document"]) == inputs.names
    assert set(got["task"]) == {"late"}
    for value, ids in zip(got["value"], inputs.ids_BT.tolist(), strict=True):
        gains = []
        for target in range(65, 96):  # ids that predictions 64..94 are scored on
            far = ids[: target + 1]
            near = ([] if start is None else [start]) + ids[49 : target + 1]
            gains.append(oracle.losses(model.module, near)[-1] - oracle.losses(model.module, far)[-1])
        assert value == pytest.approx(np.mean(gains), abs=1e-4)
    (mean,) = tables["loss_reduction"].to_pandas().query("score == 'context_gain'").to_dict("records")
    assert (mean["task"], mean["chance"], mean["n"]) == ("late", 0, 6)
    assert mean["value"] == pytest.approx(got["value"].mean())


def test_without_attention_nothing_is_gained_though_late_tokens_may_be_easier(model, corpus_tokenizer, tmp_path):
    """METHOD: content alone can lower the loss of late tokens, but it cannot make a context gain."""
    with torch.no_grad():
        for layer in model.module.gpt_neox.layers:
            layer.attention.dense.weight.zero_()
    score, inputs = drawn_from(tmp_path, corpus_tokenizer, some_texts(), 0)
    values = score.measure(model, inputs, 10_000)["loss_documents"].to_pandas().groupby("score")["value"]
    assert values.get_group("context_gain").abs().max() < 1e-5
    assert values.get_group("loss_reduction").abs().max() > 0.1


class Counting:
    """A model that expects tokens as often as they were among the last `reach` ids."""

    vocab_size, device = len(corpus.VOCABULARY), torch.device("cpu")

    def __init__(self, reach):
        self.reach = reach

    def hidden(self, ids_BT):
        counts_BTV = torch.nn.functional.one_hot(ids_BT, self.vocab_size).double().cumsum(1)
        return counts_BTV - torch.nn.functional.pad(counts_BTV, (0, 0, self.reach, 0))[:, : ids_BT.shape[1]]

    def unembed(self, counts_PV):
        return torch.log(counts_PV + 0.01)


@pytest.mark.parametrize("start", [0, None])
def test_context_gain_is_what_lies_beyond_the_stretch(corpus_tokenizer, tmp_path, start):
    """Each late token has at least 50 tokens before it in the short text, too."""
    texts = some_texts(40, words=530)  # in some of them, a late token is that of 51 tokens before
    score, inputs = drawn_from(tmp_path, corpus_tokenizer, texts, start, 501, (450, 500, 400))
    assert inputs.ids_BT.shape == (40, 501)

    def gain(reach):
        table = score.measure(Counting(reach), inputs, 10_000)["loss_documents"].to_pandas()
        return table.query("score == 'context_gain'")["value"]

    assert gain(50).abs().max() < 1e-12
    assert gain(51).abs().max() > 1e-4
    assert gain(1000).mean() > 0.05


def test_losses_that_are_not_finite_fail_the_checkpoint(model):
    with torch.no_grad():
        model.module.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        loss_reduction.token_losses(model, ids_of(2, 20), range(19), 100)


# Tasks with fixed labels of 2, 4 and 9 classes in the generated language, which itself has lists of 2 and 4.
FIXED = {
    "template": "{first} , {second} :{label}",
    "tasks": {
        "binary_fruit_month": TaskConfig(["zero", "one"], [["fruit", "month"], ["month", "fruit"]]),
        "binary_pet_job": TaskConfig(["zero", "one"], [["pet", "job"], ["job", "pet"]]),
        "four_fruit_month": TaskConfig(
            ["zero", "one", "two", "three"],
            [["fruit", "month"], ["month", "fruit"], ["fruit", "fruit"], ["month", "month"]],
        ),
        "nine_fruit_pet_month": TaskConfig(
            corpus.LABELS, [list(pair) for pair in product(["fruit", "pet", "month"], repeat=2)]
        ),
    },
}


def options_of(series="model=tiny", **changes):
    config = composed(series).icl.few_shot
    for key, value in {**(deepcopy(FIXED) if series == "model=tiny" else {}), **changes}.items():
        setattr(config, key, value)
    return config


def build(tokenizer, series="model=tiny", context=2048, seed=0, start=None, **changes):
    return episodes.build(options_of(series, **changes), tokenizer, context, seed, start)


def items_of(text, separator, config, task):
    """(words, label) of each item; the last label is None."""
    pieces = [piece.partition(":") for piece in text.split(separator)]
    labels = [after.strip() or None for _, _, after in pieces]
    assert labels[-1] is None
    assert set(labels[:-1]) <= set(config.tasks[task].labels)
    return [
        (tuple(w.strip() for w in before.split(",")), label)
        for (before, _, _), label in zip(pieces, labels, strict=True)
    ]


def test_episodes_hold_what_they_promise(corpus_tokenizer):
    found, dropped = build(corpus_tokenizer, episodes=36)
    config = options_of()
    assert not dropped
    assert len(found) == 4 * 36
    for e in found:
        task = config.tasks[e.task]
        items = items_of(corpus_tokenizer.decode(e.token_ids), " ; ", config, e.task)
        assert len(items) == 21
        assert len({pair for pair, _ in items}) == 21, "no pair twice"
        assert [task.labels[gold] for gold in e.gold[:-1]] == [label for _, label in items[:-1]]
        for (pair, _), gold in zip(items, e.gold, strict=True):
            assert all(word in config.words[kind] for kind, word in zip(task.classes[gold], pair, strict=True))
        assert set(e.gold[: len(task.classes)]) == set(range(len(task.classes))), "each class once among the first"
        for k, position in enumerate(e.asked):  # the next token is the label
            if k < 20:
                assert e.token_ids[position + 1] == e.label_token_ids[e.gold[k]]
        assert e.asked[-1] == len(e.token_ids) - 1


@pytest.mark.parametrize("count", [36, 25])
def test_classes_are_balanced_at_every_number_of_shots(corpus_tokenizer, count):
    """Exactly where the number of episodes allows it, else to within one."""
    found, _ = build(corpus_tokenizer, episodes=count)
    for task in options_of().tasks.values():
        classes = len(task.labels)
        gold_ES = np.array([e.gold for e in found if len(e.label_token_ids) == classes and e.task.startswith(
            {2: "binary_fruit", 4: "four", 9: "nine"}[classes])])  # fmt: skip
        counts = np.array([np.bincount(gold_S, minlength=classes) for gold_S in gold_ES.T])
        assert counts.max() - counts.min() <= (0 if count % classes == 0 else 1)
    late_ES = np.array([e.gold for e in found if e.task == "nine_fruit_pet_month"])[:, 9:]
    assert len({tuple(row) for row in late_ES}) == count, "later places are shuffled, each by itself"


def test_the_same_seed_draws_the_same_episodes(corpus_tokenizer):
    one, again, other = (build(corpus_tokenizer, episodes=4, seed=seed)[0] for seed in (3, 3, 4))
    assert one == again
    assert one != other
    alone, _ = build(corpus_tokenizer, episodes=4, seed=3, tasks=dict([list(options_of().tasks.items())[2]]))
    assert alone == [e for e in one if e.task == "four_fruit_month"], "other tasks leave a task's draw alone"


def test_the_embedded_series_is_asked_lists_as_its_corpus_has_them(corpus_tokenizer):
    """Item after item as in a few-shot list of the corpus; two classes, and four in a cycle; labels of its own."""
    config = composed("model=tiny").icl.few_shot
    found, dropped = episodes.build(config, corpus_tokenizer, 96, 0, start=0)
    assert not dropped
    assert len(found) == 4 * config.episodes
    labels = set()
    for e in found:
        words = corpus_tokenizer.decode(e.token_ids).split()
        assert words[0] == "<end>"
        assert words[4::4] == [";"] * 20
        classes = config.tasks[e.task].classes
        assert [[left for left, _ in classes], [right for _, right in classes]] in (
            [list(pair) for pair in zip(*[[kinds[i] for i in ends] for ends in rule], strict=True)]
            for rule in corpus.RULES
            for kinds in [list(dict.fromkeys(kind for pair in classes for kind in pair))]
            if len(rule) == len(classes)
        )
        own = [corpus.VOCABULARY[t] for t in e.label_token_ids]
        labels.add((e.task, tuple(own)))
        assert len(set(own)) == len(classes)
        assert set(own) <= set(corpus.LABELS)
        assert [corpus.VOCABULARY[t] for t in e.task_token_ids] == corpus.LABELS
        assert words[3::4] == [own[gold] for gold in e.gold[:-1]]
        for left, right, gold in zip(words[1::4], words[2::4], e.gold, strict=True):
            assert left in corpus.KINDS[classes[gold][0]]
            assert right in corpus.KINDS[classes[gold][1]]
    assert len(labels) > 0.6 * len(found), "drawn anew"  # of 72 pairs of labels, 72 draws hold about 46


def test_words_of_the_tasks_are_those_of_the_corpus():
    assert composed("model=tiny").icl.few_shot.words == corpus.KINDS


def test_more_labels_than_classes_change_nothing_but_the_labels(corpus_tokenizer):
    fixed, _ = build(corpus_tokenizer, episodes=4)
    tasks = {name: TaskConfig(corpus.LABELS, task.classes) for name, task in FIXED["tasks"].items()}
    drawn, _ = build(corpus_tokenizer, episodes=4, tasks=tasks)
    for one, other in zip(fixed, drawn, strict=True):
        assert (one.gold, one.asked) == (other.gold, other.asked)
        same = [a == b for a, b in zip(one.token_ids, other.token_ids, strict=True)]
        assert all(same[position] for position in range(len(same)) if position - 1 not in one.asked)


def test_an_answer_with_another_episodes_label_has_the_format_and_no_chance_to_be_right(model, corpus_tokenizer):
    """Labels drawn for each episode: "zero" always has the format, and is right as often as it is a class's label."""
    always(model.module, label_ids(corpus_tokenizer, "zero"))
    _, drawn, tables = scored(model, corpus_tokenizer, "icl.few_shot.episodes=36", fixed=False)
    documents = tables["few_shot_documents"].set_index(["task", "document", "shots"])
    assert (documents["format_accuracy"] == 1).all()
    (zero,) = label_ids(corpus_tokenizer, "zero")
    for e in drawn.inputs:
        rows = documents.loc[(e.task, f"{e.task}/episode-{e.number:03d}")]
        classes = len(e.label_token_ids)
        right = np.array([e.label_token_ids[gold] == zero for gold in e.gold])
        np.testing.assert_array_equal(rows["accuracy"], right)
        by_chance = (zero in e.label_token_ids) / classes
        np.testing.assert_allclose(rows["accuracy_beyond_format"], right - by_chance, atol=1e-6)
    table = tables["few_shot"].query("score == 'accuracy' and shots == 20").set_index("task")
    for task in drawn.facts["tasks"]:
        own = [zero in e.label_token_ids for e in drawn.inputs if e.task == task]
        assert table.loc[task, "chance"] == pytest.approx(np.mean(own) / drawn.facts["tasks"][task]["classes"])
        assert drawn.facts["tasks"][task]["chance"]["format_accuracy"] == 9 / len(corpus.VOCABULARY)


def test_labels_for_pairs_are_two_and_for_classes_enough():
    options = composed("model=tiny").scores["few_shot"]
    for task in (
        TaskConfig(["zero"], [["fruit", "month"], ["month", "fruit"]]),
        TaskConfig(["zero", "one", "two"], pairs=["fox boy", "wolf girl"]),
        TaskConfig(["zero", "one", "one"], [["fruit", "month"], ["month", "fruit"]]),
    ):
        with pytest.raises(SihError, match=r"tasks\.odd: expected one distinct label for each class, two for pairs"):
            made({"few_shot": options | {"tasks": {"odd": task}}})


def test_episodes_begin_as_documents_did(pythia_tokenizer):
    start = start_id(pythia_tokenizer, "<|endoftext|>")
    without, _ = build(pythia_tokenizer, "model=pythia-70m", episodes=2)
    begun, _ = build(pythia_tokenizer, "model=pythia-70m", episodes=2, start=start)
    for plain, e in zip(without, begun, strict=True):
        assert e.token_ids == (start, *plain.token_ids)
        assert e.asked == tuple(position + 1 for position in plain.asked)


def test_episodes_of_the_real_tokenizer(pythia_tokenizer):
    found, dropped = build(pythia_tokenizer, "model=pythia-70m")
    assert len(found) == 8 * 36
    nine = next(e for e in found if e.task == "nine_fruit_animal_month")
    text = pythia_tokenizer.decode(nine.token_ids)
    assert text.endswith(":")
    assert text.count("\n") == 20
    assert [pythia_tokenizer.decode([t]) for t in nine.label_token_ids] == [f" {i}" for i in range(9)]
    for _, reason, count in dropped:
        assert reason.endswith("not a single token in its place")
        assert count > 0


def test_justification_asks_for_related_words_and_the_same_words_paired_otherwise(pythia_tokenizer):
    config = options_of("model=pythia-70m")
    found, _ = build(pythia_tokenizer, "model=pythia-70m")
    tasks = {name: task for name, task in config.tasks.items() if task.pairs}
    assert len(tasks) == 4
    for name, task in tasks.items():
        of_task = [e for e in found if e.task == name]
        assert [pythia_tokenizer.decode([t]) for t in of_task[0].label_token_ids] == [" true", " false"]
        related = {tuple(pair.split()) for pair in task.pairs}
        firsts, seconds = ({pair[i] for pair in related} for i in (0, 1))
        for e in of_task:
            for (pair, _), gold in zip(
                items_of(pythia_tokenizer.decode(e.token_ids), "\n", config, name), e.gold, strict=True
            ):
                assert (pair in related) == (gold == 0)
                assert pair[0] in firsts
                assert pair[1] in seconds


def test_no_word_of_an_episode_tells_whether_a_later_pair_is_related(pythia_tokenizer):
    """No word occurs twice. Otherwise "one of its words was in a related pair, so this is none" is right in .77."""
    config = options_of("model=pythia-70m")
    found, _ = build(pythia_tokenizer, "model=pythia-70m")
    for e in (e for e in found if e.task.startswith("justify")):
        pairs = [pair for pair, _ in items_of(pythia_tokenizer.decode(e.token_ids), "\n", config, e.task)]
        words = [word for pair in pairs for word in pair]
        assert len(words) == len(set(words)) == 42


def test_too_few_pairs(pythia_tokenizer, corpus_tokenizer):
    config = options_of("model=pythia-70m")
    config.tasks["justify_part_whole"].pairs = ["antidisestablishment state"] * 9
    with pytest.raises(SihError, match="needs 21 pairs without a word in two of them; of single tokens, 0 pairs"):
        episodes.build(config, pythia_tokenizer, 2048, 0)
    few = options_of(words={kind: words[:4] for kind, words in options_of().words.items()}, shots=60)
    says = r"tasks\.binary_fruit_month: class \d has 16 different pairs of words, and an episode needs 17; list more"
    with pytest.raises(SihError, match=says):
        episodes.build(few, corpus_tokenizer, 2048, 0)
    few.tasks["binary_fruit_month"].classes = [["fruit", "month"]] * 2
    few.shots = 19  # each class has enough pairs for itself, but they are the same
    with pytest.raises(SihError, match=r"class 1 has \d+ different pairs of words, and an episode needs \d+"):
        episodes.build(few, corpus_tokenizer, 2048, 0)


def test_episodes_that_use_up_their_pairs_are_balanced_still(corpus_tokenizer):
    """16 pairs for each of two classes and 23 items: some of 36 unconstrained draws would need more."""
    words = {kind: listed[:4] for kind, listed in options_of().words.items()}
    tasks = {"binary_pet_job": options_of().tasks["binary_pet_job"]}
    found, _ = build(corpus_tokenizer, words=words, tasks=tasks, episodes=36, shots=22)
    gold_ES = np.array([e.gold for e in found])
    assert gold_ES.sum(1).min() >= 7
    assert gold_ES.sum(1).max() == 16
    assert (gold_ES.sum(0) == 18).all()


def test_shots_to_the_label_format():
    assert few_shot.shots_to({0: 0.1, 2: 0.8, 1: 0.79, 5: 0.3, 10: 1.0}) == 2
    assert np.isnan(few_shot.shots_to({0: 0.1, 20: 0.7}))


def test_too_short_a_context_keeps_as_many_shots_as_fit_and_says_so(corpus_tokenizer):
    found, dropped = build(corpus_tokenizer, context=30, episodes=4, start=0)
    assert dropped == [(f"episodes/{task}", "shots beyond the context of 30 tokens", 16) for task in options_of().tasks]
    assert {(len(e.asked), len(e.token_ids)) for e in found} == {(5, 29)}  # 6 tokens an item, 1 the start
    whole, _ = build(corpus_tokenizer, episodes=4, start=0)
    for e, full in zip(found, whole, strict=True):
        assert e.token_ids == full.token_ids[:29]
    with pytest.raises(SihError, match="binary_fruit_month: not even one item fits the context of 4 tokens"):
        build(corpus_tokenizer, context=4, start=0)


def test_labels_must_be_told_apart_by_one_token(pythia_tokenizer):
    config = options_of("model=pythia-70m", episodes=2)
    config.tasks["binary_fruit_month"].labels = ["yes", "antidisestablishment"]  # several tokens, another beginning
    found, _ = episodes.build(config, pythia_tokenizer, 2048, 0)
    (labels,) = {e.label_token_ids for e in found if e.task == "binary_fruit_month"}
    assert pythia_tokenizer.decode([labels[0]]) == " yes"
    assert " antidisestablishment".startswith(pythia_tokenizer.decode([labels[1]]))
    config.tasks["binary_fruit_month"].labels = ["yes", "yes yes"]
    with pytest.raises(SihError, match=r"two of the labels \['yes', 'yes yes'\] begin with the same token"):
        episodes.build(config, pythia_tokenizer, 2048, 0)


class Split:
    """A tokenizer that gives every space and every label its own token, as some do with numbers."""

    def __init__(self):
        self.ids = {}

    def __call__(self, text, add_special_tokens, return_offsets_mapping=False):
        if isinstance(text, list):
            return {"input_ids": [self(t, False)["input_ids"] for t in text]}
        found = list(re.finditer(r"\n|[:,]| (?=\d)|\d| ?[a-zA-Z]+", text))
        ids = [self.ids.setdefault(m.group(), len(self.ids)) for m in found]
        return {"input_ids": ids, "offset_mapping": [m.span() for m in found]}


def test_what_all_labels_begin_with_belongs_to_the_prompt():
    tokenizer = Split()
    config = options_of("model=pythia-70m", episodes=2)
    found, _ = episodes.build(config, tokenizer, 2048, 0)
    space = tokenizer.ids[" "]
    for e in found:
        if e.task.startswith("justify"):
            continue
        assert e.label_token_ids == tuple(tokenizer.ids[label] for label in config.tasks[e.task].labels)
        assert {e.token_ids[position] for position in e.asked} == {space}
        for position, gold in zip(e.asked[:-1], e.gold, strict=False):
            assert e.token_ids[position + 1] == e.label_token_ids[gold]
        assert len(e.token_ids) == 21 * 7 - 2  # five tokens before the label, of two, and the line's end


def test_tokens_that_merge_across_a_prompts_end_are_refused(corpus_tokenizer):
    class Merging:
        def __call__(self, text, add_special_tokens, return_offsets_mapping=False):
            encoded = corpus_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            if isinstance(text, list) and len(text) == 21:  # an episode's prompts, of which the last is merged
                encoded["input_ids"][-1][7] += 1
            return encoded

    with pytest.raises(
        SihError, match=r"binary_fruit_month: the tokens of an episode are not those of its prompt of 1 "
    ):
        build(Merging(), episodes=2)


def assert_equals_prompts(model, asked, answers, prompt_ids):
    n = 0
    for e in asked:
        for k, gold in enumerate(e.gold):
            want = oracle.prompt_scores(model.module, prompt_ids(e, k), list(e.label_token_ids), gold)
            for score in few_shot.ANSWERED:
                assert getattr(answers, score)[n] == pytest.approx(want[score], rel=1e-4, abs=2e-4)
            n += 1
    assert n == len(answers.accuracy)


def test_answers_in_episodes_equal_those_to_prompts_of_their_own(model, corpus_tokenizer):
    """In batches of one episode and of all, with tasks of 2, 4 and 9 labels in them."""
    asked, _ = build(corpus_tokenizer, context=96, episodes=2, start=0)

    def prompt_ids(e, k):
        text = corpus_tokenizer.decode(e.token_ids[1 : e.asked[k] + 1])
        return [0, *corpus_tokenizer(text, add_special_tokens=False)["input_ids"]]

    for batch_tokens in (64, 100_000):
        assert_equals_prompts(model, asked, few_shot.answer(model, asked, batch_tokens), prompt_ids)


def test_answers_in_episodes_equal_those_to_prompts_with_the_real_tokenizer(pythia_tokenizer):
    model = Model(random_module(50304, width=16, context=512), torch.device("cpu"))
    asked, _ = build(pythia_tokenizer, "model=pythia-70m", episodes=1, start=0, shots=12)
    config = options_of("model=pythia-70m")

    def prompt_ids(e, k):
        """Written out once more from the episode's words."""
        words = items_of(pythia_tokenizer.decode(e.token_ids[1:]), "\n", config, e.task)[: k + 1]
        lines = [f" {first}, {second}: {label}" for (first, second), label in words[:-1]]
        text = "\n".join([*lines, " {}, {}:".format(*words[-1][0])])
        return [0, *pythia_tokenizer(text, add_special_tokens=False)["input_ids"]]

    assert_equals_prompts(model, asked, few_shot.answer(model, asked, 300), prompt_ids)


def test_logits_that_are_not_finite_fail_the_checkpoint(model, corpus_tokenizer):
    with torch.no_grad():
        model.module.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(CheckpointError, match="few-shot logits are NaN or infinite"):
        few_shot.answer(model, build(corpus_tokenizer, context=96, episodes=1)[0], 1000)


@given(st.lists(st.floats(-20, 20), min_size=6, max_size=6), st.integers(0, 2), st.floats(-5, 5))
def test_a_constant_added_to_all_logits_changes_no_margin(logits, gold, shift):
    logit_NC, gold_N = np.array(logits).reshape(2, 3), np.array([gold, 0])
    margin_N = few_shot.margins(logit_NC, gold_N)
    np.testing.assert_allclose(few_shot.margins(logit_NC + shift, gold_N), margin_N, atol=1e-9)
    padded = np.pad(logit_NC, ((0, 0), (0, 2)), constant_values=-np.inf)
    np.testing.assert_allclose(few_shot.margins(padded, gold_N), margin_N)
    by_hand = logit_NC[0, gold] - np.log(np.exp(np.delete(logit_NC[0], gold)).sum())
    assert margin_N[0] == pytest.approx(by_hand)


def scored(model, tokenizer, *overrides, context=96, fixed=True):
    """The score, what it drew, and its tables."""
    options = composed("model=tiny", *overrides).scores["few_shot"] | (FIXED if fixed else {})
    score = made({"few_shot": options})["few_shot"]
    drawn = score.draw(Given(tokenizer, len(tokenizer), model.vocab_size, context, 0, {}, None, 0))
    tables = score.measure(model, drawn.inputs, 1000)
    assert all(set(columns) <= set(tables[name].column_names) for name, columns in score.tables.items())
    return score, drawn, {name: table.to_pandas() for name, table in tables.items()}


def always(module, ids):
    """The module answers, wherever it is asked, with the first of `ids`, then the next, whatever it reads."""
    with torch.no_grad():
        module.gpt_neox.final_layer_norm.weight.zero_()
        module.gpt_neox.final_layer_norm.bias.fill_(1)
        module.lm_head.weight.zero_()
        for place, t in enumerate(ids):
            module.lm_head.weight[t] = 1 / (place + 1)


def label_ids(tokenizer, *labels):
    return [tokenizer.get_vocab()[label] for label in labels]


def test_a_model_that_answers_in_format_without_examples_gains_nothing_from_them(model, corpus_tokenizer):
    """A fixed legal label: the format is perfect, and neither it nor the pattern was learned from the prompt."""
    always(model.module, label_ids(corpus_tokenizer, "zero", "one"))
    score, drawn, tables = scored(model, corpus_tokenizer, "icl.few_shot.episodes=36")
    documents = tables["few_shot_documents"]
    assert (documents["format_accuracy"] == 1).all()
    assert (documents["format_gained"] == 0).all()
    table = tables["few_shot"].set_index(["score", "task", "shots"]).sort_index()
    for task, of_task in drawn.facts["tasks"].items():
        for shots in range(of_task["shots"] + 1):
            assert table.loc[("accuracy_beyond_format", task, shots), "value"].item() == pytest.approx(0, abs=1e-12)
            accuracy = table.loc[("accuracy", task, shots)]
            assert accuracy["value"].item() == pytest.approx(1 / of_task["classes"])
            told = np.nan if 0 < shots < of_task["classes"] else 1 / of_task["classes"]  # the class has not been shown
            assert accuracy["chance"].item() == pytest.approx(told, nan_ok=True)
    for series in score.series(drawn.facts):
        if series.value in ("format_gained", "accuracy_beyond_format", "constrained_accuracy"):
            kept = np.logical_and.reduce([documents[column].isin(list(v)) for column, v in series.where.items()])
            assert documents.loc[kept, series.value].mean() == pytest.approx(series.chance, abs=1e-6)


def test_a_model_that_never_answers_in_format_has_no_chance_to_be_right(model, corpus_tokenizer):
    always(model.module, label_ids(corpus_tokenizer, "apple", "zero"))
    _, _, tables = scored(model, corpus_tokenizer, "icl.few_shot.episodes=4")
    accuracy = tables["few_shot"].query("score == 'accuracy'")
    assert (accuracy["value"] == 0).all()
    assert (accuracy["chance"].dropna() == 0).all()
    assert (tables["few_shot_documents"]["accuracy_beyond_format"] == 0).all()


def test_tables_of_episodes(model, corpus_tokenizer):
    score, drawn, tables = scored(model, corpus_tokenizer, "icl.few_shot.episodes=9")
    documents, table = tables["few_shot_documents"], tables["few_shot"]
    assert len(documents) == 4 * 9 * 16
    assert drawn.told == "36 episodes asked 576 times"
    assert documents["shots"].dtype == np.int16
    assert documents["label_margin"].dtype == np.float32
    zero = documents[documents["shots"] == 0].set_index("document")["format_accuracy"].astype(float)
    by_hand = documents["format_accuracy"] - documents["document"].astype(str).map(zero)
    np.testing.assert_allclose(documents["format_gained"], by_hand)
    for score_name in few_shot.SCORES:
        means = documents.groupby(["task", "shots"], observed=True)[score_name].mean()
        rows = table[(table["score"] == score_name) & table["shots"].notna()].set_index(["task", "shots"])["value"]
        for key, mean in means.items():
            assert rows[key] == pytest.approx(mean, abs=1e-5)
        two = means[[task for task in means.index.unique("task") if task.startswith("binary")]].groupby("shots").mean()
        np.testing.assert_allclose(rows["2 classes"].sort_index(), two, atol=1e-5)
    assert "relations" not in set(table["task"])
    # Pooled over the shots that a series has: from 5, and from as many as there are classes.
    for series in score.series(drawn.facts):
        if series.value == "first_in_format":
            continue
        (task,), shots = series.where["task"], series.where["shots"]
        first = 5 if series.value == "format_gained" else max(5, drawn.facts["tasks"][task]["classes"])
        assert shots == list(range(first, 16))
        mean = documents.loc[(documents["task"] == task) & documents["shots"].isin(shots), series.value].mean()
        (pooled,) = table.loc[
            (table["score"] == series.value) & (table["task"] == task) & table["shots"].isna(), "value"
        ]
        assert pooled == pytest.approx(mean, abs=1e-5)
    for row in tables["few_shot_episodes"].itertuples():  # 16: none of its answers has the format
        mine = documents[(documents["document"] == row.document) & (documents["format_accuracy"] == 1)]
        assert row.first_in_format == (mine["shots"].min() if len(mine) else 16)
    assert len(tables["few_shot_episodes"]) == 4 * 9
    intervals = table[table["score"] != "shots_to_format"]
    assert (intervals["ci_low"] <= intervals["value"] + 1e-9).all()
    assert (intervals["value"] <= intervals["ci_high"] + 1e-9).all()


def test_series_and_curves_of_both_kinds_of_task(pythia_tokenizer):
    score = made(composed("model=pythia-70m", "icl.few_shot.episodes=2").scores)["few_shot"]
    facts = score.draw(Given(pythia_tokenizer, 50277, 50304, 2048, 0, {}, None, 0)).facts
    series = {s.name: s for s in score.series(facts)}
    assert len(series) == 5 * 8
    gained = series["format_gained/four_fruit_month"]
    assert (gained.family, gained.headline, gained.chance) == ("format_gained", True, 0.0)
    assert gained.label == "format gained, four fruit month"
    margin = series["label_margin/justify_part_whole"]
    assert (margin.family, margin.headline, margin.unit) == ("label_margin (relations)", False, "nats")
    assert margin.smallest_rise == 0.25
    assert series["label_margin/nine_fruit_animal_month"].chance == pytest.approx(-np.log(8))
    assert series["constrained_accuracy/nine_fruit_animal_month"].where["shots"] == list(range(9, 21))
    beyond = series["accuracy_beyond_format/four_fruit_month"]
    assert (beyond.family, beyond.headline, beyond.chance) == ("accuracy_beyond_format", False, 0.0)
    curves = score.curves(facts)
    assert [(c.row, c.label) for c in curves[:2]] == [
        ("2 classes", "format accuracy"),
        ("2 classes", "accuracy"),
    ]
    assert list(dict.fromkeys(c.row for c in curves)) == ["2 classes", "4 classes", "9 classes", "relations"]
    assert len(curves) == 16
    first = {(c.row, c.label): c.where["shots"][0] for c in curves}
    assert (first["9 classes", "format accuracy"], first["9 classes", "accuracy"]) == (0, 9)
    assert first["relations", "label margin"] == 2
    assert json.loads(json.dumps(described(score, facts)))["curves"][-1]["where"]["task"] == ["relations"]


def test_a_pattern_series_needs_as_many_shots_as_classes(model, corpus_tokenizer):
    """A context of 50 tokens holds 7 shots: too few for nine classes, whose format is asked for all the same."""
    score, drawn, tables = scored(model, corpus_tokenizer, "icl.few_shot.episodes=2", context=50)
    names = {s.name for s in score.series(drawn.facts)}
    assert "constrained_accuracy/four_fruit_month" in names
    assert "format_gained/nine_fruit_pet_month" in names
    assert "constrained_accuracy/nine_fruit_pet_month" not in names
    pooled = tables["few_shot"].query("shots.isna() and score == 'constrained_accuracy'")
    assert "nine_fruit_pet_month" not in set(pooled["task"])
    assert "9 classes" not in set(pooled["task"])


def test_texts_from_every_format(tmp_path, corpus_tokenizer):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"the {w} ."}) + "\n" for w in ("fox", "wolf")))
    pq.write_table(pa.table({"text": ["the fox .", "the wolf ."]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n = Fox = \n\n the fox .\n\n = = Life = = \n\n = Wolf = \n\n the wolf .\n")
    for name in ("a.jsonl", "a.parquet"):
        assert long.read(tmp_path / name) == ["the fox .", "the wolf ."]
    assert [t.split()[1] for t in long.read(tmp_path / "a.txt")] == ["Fox", "Wolf"]
    found = long.cut(["the fox . the wolf .", "the", "a red cup ."], corpus_tokenizer, 3, 5, None)
    assert [(name, corpus_tokenizer.decode(ids)) for name, ids in found] == [
        ("text-0000", "the fox ."),
        ("text-0002", "a red cup"),
        ("text-0000", "the wolf ."),
    ]
    with pytest.raises(SihError, match="1 of 2 texts have 5 tokens; expected at least 2"):
        long.cut(["the fox . the wolf .", "the fox ."], corpus_tokenizer, 5, 5, None)


def test_malformed_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"words": "no"}\n')
    with pytest.raises(SihError, match=r'a\.jsonl, line 2: expected a JSON object with a "text"'):
        long.read(tmp_path / "a.jsonl")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(SihError, match="cannot be read as texts"):
        long.read(tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SihError, match="cannot be read as texts"):
        long.read(tmp_path / "c.txt")
    (tmp_path / "d.jsonl").write_text('{"text": "one\u2028line"}\n', encoding="utf-8")
    assert long.read(tmp_path / "d.jsonl") == ["one\u2028line"]


@pytest.mark.parametrize(
    ("apart", "whole"),
    [
        ("a two @-@ part arc of 9 @,@ 500 m , or 12 @.@ 1 ° C . \n", "a two-part arc of 9,500 m, or 12.1°C.\n"),
        ('He said : " Well , no ! " ( He was [ right ] . )', 'He said: "Well, no!" (He was [right].)'),
        ("Nero 's men don 't trust O 'Brien .", "Nero's men don't trust O'Brien."),
        ("the ships ' guns , as ' armour ' and ' sails ' .", "the ships' guns, as 'armour' and 'sails'."),
        ("\" He was the team 's next ' star . ' \"", "\"He was the team's next 'star.'\""),
        ('an odd " mark \n and " a pair "', 'an odd " mark\nand "a pair"'),
        (" = = = Later life = = = \n In 1920 ", " === Later life ===\nIn 1920 "),
        ("the N @-@ O bond , and N alone", "the N-O bond, and N alone"),
    ],
)
def test_detokenising(apart, whole):
    assert wikitext.detokenised(apart) == whole


def test_wikitext_gives_articles_with_their_natural_spacing(wikitext_file, pythia_tokenizer):
    articles = wikitext.read(wikitext_file)
    assert len(articles) == 60  # and no formula that looks like a title
    raw = wikitext.articles(wikitext_file.read_text("utf-8"))
    for article, apart in zip(articles, raw, strict=True):
        assert "".join(article.split()) == "".join(re.sub(r" @(.)@ ", r"\1", apart).split())
        assert not re.search(r"<unk>| @.@ | [,.;:!?](?:\s|$)", article)
    found = long.cut(articles, pythia_tokenizer, 501, 60, 0)
    assert len({name for name, _ in found}) == len(found) == 60
    assert all(len(ids) == 501 and ids[0] == 0 for _, ids in found)
    assert pythia_tokenizer.decode(found[0][1]).startswith("<|endoftext|>= Robert Boulter =\nRobert Boulter is")


def test_a_file_without_articles_is_no_wikitext(tmp_path):
    (tmp_path / "a.txt").write_text("plain text")
    with pytest.raises(SihError, match="expected raw WikiText"):
        wikitext.read(tmp_path / "a.txt")
