import json
import re

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import composed
from hypothesis import given
from hypothesis import strategies as st

from sih.checkpoints import corpus
from sih.errors import CheckpointError, SihError
from sih.scores import Given, few_shot, loss_reduction
from sih.scores.loss_reduction import LossReduction
from sih.texts import long, prompts, wikitext

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
    return [" ".join(d.words[1:]) for d in corpus.documents(1, "test", count, words, 0.2, 0.2)]


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
    assert abs(values.get_group("loss_reduction").mean()) > 0.1


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
    score, inputs = drawn_from(tmp_path, corpus_tokenizer, some_texts(words=530), start, 501, (450, 500, 400))
    assert inputs.ids_BT.shape == (6, 501)

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


def build(tokenizer, context=96, **changes):
    config = composed("model=tiny").icl.few_shot
    for key, value in changes.items():
        setattr(config, key, value)
    return prompts.build(config, tokenizer, context, seed=0)


def test_prompts_hold_what_they_promise(corpus_tokenizer):
    found, dropped = build(corpus_tokenizer, prompts=18)
    config = composed("model=tiny").icl.few_shot
    assert not dropped
    golds, queries = {}, {}
    for p in found:
        words = corpus_tokenizer.decode(p.token_ids).split()
        task = config.tasks[p.task]
        pieces = " ".join(words).split(" ; ")
        assert len(pieces) == p.shots + 1
        query = tuple(pieces[-1].removesuffix(" :").split(" , "))
        assert words[-1] == ":"
        kinds = [{k for k, listed in config.words.items() if w in listed} for w in query]
        assert all(k in have for k, have in zip(task.classes[p.gold], kinds, strict=True))
        labels = [piece.split(" : ")[1] for piece in pieces[:-1]]
        assert set(labels) <= set(task.labels)
        if p.shots >= len(task.classes):
            assert set(labels) == set(task.labels)
        assert query not in {tuple(piece.split(" : ")[0].split(" , ")) for piece in pieces[:-1]}
        golds.setdefault((p.task, p.shots), []).append(p.gold)
        queries.setdefault((p.task, p.query), set()).add(query)
    assert {len(q) for q in queries.values()} == {1}, "a query is the same at every number of shots"
    for shots in config.shots:  # 18 queries over 9 classes
        counts = np.bincount(golds["nine_fruit_pet_month", shots])
        assert set(counts) == {2}


def test_prompts_of_the_real_tokenizer(pythia_tokenizer):
    config = composed("model=pythia-70m").icl.few_shot
    found, dropped = prompts.build(config, pythia_tokenizer, 2048, 0)
    assert len(found) == 8 * 8 * 50
    nine = next(p for p in found if p.task == "nine_fruit_animal_month" and p.shots == 10)
    text = pythia_tokenizer.decode(nine.token_ids)
    assert text.endswith(":")
    assert text.count("\n") == 10
    assert [pythia_tokenizer.decode([t]) for t in nine.label_token_ids] == [f" {i}" for i in range(9)]
    for _, reason, count in dropped:
        assert reason.endswith("not a single token in its place")
        assert count > 0


def test_justification_asks_for_related_words_and_the_same_words_paired_otherwise(pythia_tokenizer):
    config = composed("model=pythia-70m").icl.few_shot
    found, _ = prompts.build(config, pythia_tokenizer, 2048, 0)
    tasks = {name: task for name, task in config.tasks.items() if task.pairs}
    assert len(tasks) == 4
    for name, task in tasks.items():
        of_task = [p for p in found if p.task == name]
        assert [pythia_tokenizer.decode([t]) for t in of_task[0].label_token_ids] == [" true", " false"]
        related = {tuple(pair.split()) for pair in task.pairs}
        firsts, seconds = ({pair[i] for pair in related} for i in (0, 1))
        for p in of_task:
            pieces = pythia_tokenizer.decode(p.token_ids).split("\n")
            query = tuple(pieces[-1].strip().removesuffix(":").split(", "))
            assert (query in related) == (p.gold == 0)
            assert query[0] in firsts
            assert query[1] in seconds
            for piece in pieces[:-1]:
                words, label = piece.strip().split(": ")
                assert (tuple(words.split(", ")) in related) == (label == "true")
                assert tuple(words.split(", ")) != query
        assert {sum(p.gold for p in of_task if p.shots == shots) for shots in config.shots} == {25}


def test_too_few_pairs_of_single_tokens(pythia_tokenizer):
    config = composed("model=pythia-70m").icl.few_shot
    config.tasks["justify_part_whole"].pairs = ["antidisestablishment state"] * 9
    with pytest.raises(SihError, match="0 of 9 pairs are single tokens of this tokenizer; expected at least 8"):
        prompts.build(config, pythia_tokenizer, 2048, 0)


def test_shots_to_the_label_format():
    assert few_shot.shots_to({0: 0.1, 2: 0.8, 1: 0.79, 5: 0.3, 10: 1.0}) == 2
    assert np.isnan(few_shot.shots_to({0: 0.1, 20: 0.7}))


def test_prompts_beyond_the_context_are_counted(corpus_tokenizer):
    found, dropped = build(corpus_tokenizer, context=30, prompts=4)
    assert max(len(p.token_ids) for p in found) <= 30
    assert sum(n for _, reason, n in dropped if "longer than the context" in reason) == 4 * 7 * 4 - len(found)
    with pytest.raises(SihError, match="no few-shot prompt fits"):
        build(corpus_tokenizer, context=3)


def test_labels_must_be_single_tokens(pythia_tokenizer):
    config = composed("model=pythia-70m").icl.few_shot
    config.tasks["binary_fruit_month"].labels = ["yes", "antidisestablishment"]
    with pytest.raises(SihError, match=r"the label 'antidisestablishment' is not a single token"):
        prompts.build(config, pythia_tokenizer, 2048, 0)


def test_answers_equal_the_loop_in_any_batch(model, corpus_tokenizer):
    found, _ = build(corpus_tokenizer, prompts=3)
    small, large = (few_shot.answer(model, found, n) for n in (64, 100_000))
    for n, prompt in enumerate(found):
        want = oracle.prompt_scores(model.module, prompt)
        for score in few_shot.SCORES:
            assert getattr(small, score)[n] == pytest.approx(want[score], rel=1e-4, abs=1e-4)
            assert getattr(large, score)[n] == pytest.approx(want[score], rel=1e-4, abs=1e-4)


@given(st.lists(st.floats(-20, 20), min_size=12, max_size=12), st.integers(0, 2), st.floats(-5, 5))
def test_a_constant_added_to_all_logits_changes_no_answer(logits, gold, shift):
    prompt = prompts.Prompt("t", 0, 0, (1,), gold, (3, 5, 7))
    values = np.array(logits).round(2)
    moved_values = values + round(shift)
    plain = few_shot.score_prompt(prompt, int(values.argmax()), values)
    moved = few_shot.score_prompt(prompt, int(moved_values.argmax()), moved_values)
    assert moved == pytest.approx(plain)
    assert plain["accuracy"] <= min(plain["format_accuracy"], plain["constrained_accuracy"])


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
