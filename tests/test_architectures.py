"""Every head score on small random models of other architectures, against the slow loops of oracle.py."""

import numpy as np
import oracle
import pytest
import torch
from architectures import made
from test_relation_index import compare

from sih.models.model import Model
from sih.scores import induction, loss_reduction
from sih.texts.relations import Example, Triplet

NAMES = ["gpt2", "gpt2-crfm", "llama", "qwen3", "gemma2", "olmo2"]
N = 97


def model_of(name: str) -> Model:
    return Model(made(name), torch.device("cpu"))


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    found = []
    for n in range(8):
        ids = tuple(int(i) for i in rng.integers(N, size=14))
        triplets = tuple(Triplet(relation, *map(int, rng.choice(14, 2, replace=False))) for relation in ("r", "s"))
        found.append(Example(f"d{n}", "source", ids, triplets))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_relation_index_equals_the_loop(name):
    compared = compare(made(name), examples(), rel=1e-4)  # streams of up to 100, in float32 on both sides
    assert compared["argmax_events"] > 50
    assert compared["contextual_argmax_scored"] > 50


@pytest.mark.parametrize("name", NAMES)
def test_attention_and_copying_scores_equal_the_loop(name):
    model = model_of(name)
    tokens = induction.draw(N, sequences=2, length=12, copying_tokens=30, seed=0)
    score_ALH = induction.attention_scores(model, tokens, 100).mean(1)
    copying_LH = induction.copying_score(model, tokens)
    loops = (oracle.prefix_matching, oracle.previous_token, oracle.duplicate_token)
    for layer in range(model.n_layers):
        patterns_BHTT = [oracle.attentions(model.module, ids)[layer] for ids in tokens.repeated_BT.tolist()]
        for head in range(model.n_heads):
            assert copying_LH[layer, head] == pytest.approx(
                oracle.copying(model.module, layer, head, tokens.copying_U.tolist()), rel=1e-4
            )
            for a, loop in enumerate(loops):
                args = () if loop is oracle.previous_token else (12,)
                want = np.mean([loop(pattern_HTT[head], *args) for pattern_HTT in patterns_BHTT])
                assert score_ALH[a, layer, head] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_the_loop(name):
    model = model_of(name)
    ids_BT = torch.randint(N, (3, 20), generator=torch.Generator().manual_seed(0))
    found_BT = loss_reduction.token_losses(model, ids_BT, range(19), 40)
    for row, ids in zip(found_BT, ids_BT.tolist(), strict=True):
        np.testing.assert_allclose(row, oracle.losses(model.module, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_the_gain_changes_the_index_of_models_with_a_norm_after_attention(name):
    """And without it the circuit is the plain one."""
    model, ids = model_of(name), torch.arange(20)
    values_HUK, targets_HUK = model.ov_factors(1, ids)
    again_HUK, plain_HUK = model.ov_factors(1, ids, gain=False)
    assert torch.equal(values_HUK, again_HUK)
    layer, unembedding_UD = model.layers[1], model.module.lm_head.weight[:20]
    assert torch.allclose(plain_HUK, unembedding_UD @ layer.o_HDK, atol=1e-5)
    assert torch.allclose(targets_HUK, (unembedding_UD * oracle.gain(model.module, 1)) @ layer.o_HDK, atol=1e-5)
    assert not torch.allclose(plain_HUK, targets_HUK, atol=1e-2)
    assert model.circuit == "W_V W_O diag(gain) W_U"
    assert model_of("llama").circuit == "W_V W_O W_U"
