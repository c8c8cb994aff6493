"""Indirect effects at the last position: equal to replacing each head in a pass of its own."""

import numpy as np
import pytest
import torch
from conftest import composed, random_module

from sih.checkpoints import corpus
from sih.models import replacing
from sih.models.model import Model
from sih.scores import Given
from sih.scores.function_vectors import indirect_effects, mean_at_the_end
from sih.scores.making import made

N = len(corpus.VOCABULARY)
HEADS = [(layer, head) for layer in range(3) for head in range(4)]


@pytest.fixture(scope="module")
def model():
    return Model(random_module(N, layers=3, heads=4, width=32), torch.device("cpu"))


@pytest.fixture(scope="module")
def drawn(corpus_tokenizer):
    options = ["scores.function_vectors.clean=5", "scores.function_vectors.corrupted=4"]
    score = made(composed("model=tiny", *options).scores)["function_vectors"]
    return score, score.draw(Given(corpus_tokenizer, N, N, 96, 0, {}, None, 0)).inputs


def test_prompts_keep_their_labels_but_permuted(drawn):
    _, tasks = drawn
    changed = 0
    for prompts in tasks:
        assert (len(prompts.clean), len(prompts.corrupted)) == (5, 4)
        labels = {corpus.VOCABULARY.index(w) for w in corpus.LABELS}
        for _, ids, answer in prompts.corrupted:
            assert answer in labels
            assert sum(i in labels for i in ids) == 10
            changed += 1
        assert not {tuple(ids) for _, ids, _ in prompts.corrupted} & set(prompts.clean)
    assert changed == 4 * len(tasks)


@pytest.mark.parametrize("at_once", [512, 5])
def test_copies_of_the_last_token_equal_passes_of_their_own(model, drawn, at_once):
    _, tasks = drawn
    prompts = tasks[0]
    ids_BT = torch.tensor([ids for _, ids, _ in prompts.corrupted])
    mean_LHK = mean_at_the_end(model, prompts.clean, 1000)
    found = replacing.at_the_end(model, ids_BT, HEADS, mean_LHK, at_once)[:, :, 0]
    last_B = torch.full((len(ids_BT),), ids_BT.shape[1] - 1)
    for n, heads in enumerate([[], *([head] for head in HEADS)]):
        with replacing.replaced(model, heads, mean_LHK, last_B):
            want = model.hidden(ids_BT)[:, -1]
        torch.testing.assert_close(found[n], want, rtol=1e-4, atol=1e-4)
        assert n == 0 or (found[n] - found[0]).abs().max() > 1e-3


def test_indirect_effects_against_the_slow_way(model, drawn):
    _, tasks = drawn
    for prompts in tasks[:2]:
        z = torch.stack([torch.stack([replacing.outputs(model, torch.tensor([ids]))[n][0, -1] for n in range(3)])
                         for ids in prompts.clean])  # fmt: skip
        mean_LHK = mean_at_the_end(model, prompts.clean, 70)
        torch.testing.assert_close(mean_LHK, z.mean(0))
        for _, ids, answer in prompts.corrupted[:2]:
            ids_BT = torch.tensor([ids])
            log_p, p = indirect_effects(model, ids_BT, torch.tensor([answer]), mean_LHK)
            clean = model.unembed(model.hidden(ids_BT)[0, -1]).softmax(-1)[answer].item()
            for layer, head in HEADS:
                with replacing.replaced(model, [(layer, head)], mean_LHK, torch.tensor([len(ids) - 1])):
                    changed = model.unembed(model.hidden(ids_BT)[0, -1]).softmax(-1)[answer].item()
                assert p[0, layer, head] == pytest.approx(changed - clean, abs=1e-6)
                assert log_p[0, layer, head] == pytest.approx(np.log(changed / clean), abs=1e-3)


def test_tables_are_means_over_prompts_and_tasks(model, drawn):
    score, tasks = drawn
    tables = {n: t.to_pandas() for n, t in score.measure(model, tasks, 500).items()}
    again = {n: t.to_pandas() for n, t in score.measure(model, tasks, 50_000).items()}
    documents, heads = tables["function_vector_documents"], tables["function_vector_heads"]
    assert len(documents) == len(tasks) * 4 * 12
    by_task = documents.groupby(["task", "layer", "head"], observed=True)["delta_log_prob"].mean()
    want = by_task.groupby(["layer", "head"]).mean().to_numpy()
    np.testing.assert_allclose(heads["delta_log_prob"], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again["function_vector_heads"], heads, rtol=1e-3, atol=1e-5)
    assert (documents["lowers"] == -documents["delta_log_prob"]).all()
    for series in score.series({}):
        assert {*series.columns()} <= {*score.tables[series.table]}
