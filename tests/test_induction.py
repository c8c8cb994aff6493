import numpy as np
import oracle
import pytest
import torch

from sih.checkpoints import corpus
from sih.scores import induction

N = len(corpus.VOCABULARY)


@pytest.mark.parametrize("start", [None, 0])
def test_scores_equal_the_loops(model, start):
    tokens = induction.draw(N, sequences=3, length=12, copying_tokens=20, seed=1, start=start)
    found = dict(
        zip(induction.ATTENTION_SCORES, induction.attention_scores(model, tokens, batch_tokens=48), strict=True)
    )
    copying = induction.copying_score(model, tokens)
    for b, ids in enumerate(tokens.repeated_BT.tolist()):
        for layer, pattern in enumerate(oracle.attentions(model.module, ids)):
            for head in range(4):
                own = pattern[head] if start is None else pattern[head][1:, 1:]  # among the drawn tokens
                want = {
                    "prefix_matching_score": oracle.prefix_matching(own, 12),
                    "previous_token_score": oracle.previous_token(own),
                    "duplicate_token_score": oracle.duplicate_token(own, 12),
                    "first_token_share": oracle.first_token(pattern[head]),
                }
                assert {name: value[b, layer, head] for name, value in found.items()} == pytest.approx(want, rel=1e-5)
    for layer in range(2):
        for head in range(4):
            want = oracle.copying(model.module, layer, head, tokens.copying_U.tolist())
            assert copying[layer, head] == pytest.approx(want, rel=1e-4)
    by_group = induction.copying_by_group(induction.copying_shares(model, tokens)).to_pandas()
    assert by_group["document"].nunique() == 16
    (head_0,) = (g["copying_score"].to_numpy() for key, g in by_group.groupby(["layer", "head"]) if key == (0, 0))
    weights = [len(g) for g in np.array_split(np.arange(20), 16)]
    assert np.average(head_0, weights=weights) == pytest.approx(copying[0, 0], rel=1e-5)


def test_draws_are_seeded_distinct_repeated_and_below_the_tokenizers_size():
    tokens = induction.draw(50277, sequences=64, length=48, copying_tokens=256, seed=0)
    assert torch.equal(tokens.repeated_BT, induction.draw(50277, 64, 48, 256, 0).repeated_BT)
    assert not torch.equal(tokens.repeated_BT, induction.draw(50277, 64, 48, 256, 1).repeated_BT)
    half = tokens.repeated_BT[:, :48]
    assert torch.equal(half, tokens.repeated_BT[:, 48:])
    assert all(len(set(row)) == 48 for row in half.tolist())
    assert int(tokens.repeated_BT.max()) < 50277
    assert len(set(tokens.copying_U.tolist())) == 256


def test_the_document_start_begins_every_sequence_and_is_never_drawn():
    tokens = induction.draw(10, 2, 48, 256, 0, start=3)
    assert (tokens.half, tokens.begins) == (9, True)
    assert (tokens.repeated_BT[:, 0] == 3).all()
    assert (tokens.repeated_BT[:, 1:] != 3).all()
    assert 3 not in tokens.copying_U.tolist()


def test_a_small_vocabulary_shortens_the_half():
    assert induction.draw(10, 2, 48, 256, 0).half == 10


def test_uniform_attention_scores_chance(model):
    """With the query-key weights at zero every position attends uniformly, and the score is the mean of 1 / (i + 1)."""
    tokens = induction.draw(N, sequences=2, length=12, copying_tokens=20, seed=1)
    with torch.no_grad():
        for layer in model.module.gpt_neox.layers:
            qkv = layer.attention.query_key_value
            qkv.weight.view(4, 3, 8, -1)[:, 0] = 0
            qkv.bias.view(4, 3, 8)[:, 0] = 0
    prefix = induction.attention_scores(model, tokens, 1000)[0]
    np.testing.assert_allclose(prefix, np.mean(1 / np.arange(13, 24)), rtol=1e-5)
