import json

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
from sih.scores import few_shot, loss_reduction
from sih.texts import long, prompts

WINDOWS = {"a": [0, 4, 4, 8], "b": [0, 4, 15, 19]}


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
    assert loss_reduction.needed_length(WINDOWS) == 20
    loss_reduction.check_context(WINDOWS, 20)
    with pytest.raises(SihError, match=r"windows\.b needs 20 tokens, but the model's context is 19"):
        loss_reduction.check_context(WINDOWS, 19)


def test_only_what_a_window_or_the_curve_reads_is_read():
    assert loss_reduction.positions_read({"a": [0, 2, 2, 4], "b": [1, 2, 17, 19]}) == [0, 1, 2, 3, 7, 15, 17, 18]


def test_log_spaced_positions():
    assert loss_reduction.log_spaced_positions(20) == [0, 1, 3, 7, 15, 19]
    assert loss_reduction.log_spaced_positions(1) == [0]


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
    found = long.cut(["the fox . the wolf .", "the", "a red cup ."], corpus_tokenizer, 3, 5)
    assert [(name, corpus_tokenizer.decode(ids)) for name, ids in found] == [
        ("text-0000", "the fox ."),
        ("text-0002", "a red cup"),
        ("text-0000", "the wolf ."),
    ]
    with pytest.raises(SihError, match="1 of 2 texts have 5 tokens; expected at least 2"):
        long.cut(["the fox . the wolf .", "the fox ."], corpus_tokenizer, 5, 5)


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


def test_wikitext_gives_articles(wikitext_file, pythia_tokenizer):
    articles = long.read(wikitext_file)
    assert len(articles) > 50
    found = long.cut(articles, pythia_tokenizer, 501, 64)
    assert len(found) == 64
    assert len({name for name, _ in found}) == 60
    assert all(len(ids) == 501 for _, ids in found)
