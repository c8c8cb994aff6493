"""The same random weights through TransformerLens: patterns, OV logits and losses are what others compute too."""

import numpy as np
import pytest
import torch
from conftest import random_module
from lens import hooked

from sih.checkpoints import corpus
from sih.models.model import Model
from sih.scores import loss_reduction

N = len(corpus.VOCABULARY)


@pytest.fixture(scope="module")
def both():
    module = random_module(N)
    return Model(module, torch.device("cpu")), hooked(module)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(N, (3, 40), generator=torch.Generator().manual_seed(0))


def test_attention_patterns_and_head_outputs(both, ids):
    model, lens = both
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids)
    seen = {}
    model.hidden(ids, lambda layer, attn_BHTT, out_BTHK: seen.update({layer: (attn_BHTT, out_BTHK)}))
    assert sorted(seen) == [0, 1]
    for layer, (attn_BHTT, out_BTHK) in seen.items():
        np.testing.assert_allclose(attn_BHTT, cache["pattern", layer], atol=2e-5)
        np.testing.assert_allclose(out_BTHK, cache["z", layer], atol=2e-4)


def test_ov_logits_of_every_head(both):
    model, lens = both
    tokens = torch.arange(0, N, 7)
    for layer in range(2):
        values_HUK, targets_HUK = model.ov_factors(layer, tokens)
        for head in range(4):
            with torch.no_grad():
                ov = lens.W_V[layer, head] @ lens.W_O[layer, head]
                want = lens.W_E[tokens] @ ov @ lens.W_U[:, tokens]
            np.testing.assert_allclose(values_HUK[head] @ targets_HUK[head].T, want, rtol=1e-4, atol=1e-4)


def test_losses_of_every_token(both, ids):
    model, lens = both
    with torch.no_grad():
        want = lens(ids, return_type="loss", loss_per_token=True)
    np.testing.assert_allclose(loss_reduction.token_losses(model, ids, range(39), 10_000), want, rtol=1e-4, atol=1e-4)
