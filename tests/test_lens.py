"""The same random weights through TransformerLens: patterns, OV logits and losses are what others compute too."""

import numpy as np
import pytest
import torch
from architectures import made
from lens import hooked

from sih.models.model import Model
from sih.scores import loss_reduction

N = 97


@pytest.fixture(scope="module", params=["gpt_neox", "gpt2", "gpt2-crfm", "llama", "qwen3", "gemma2", "olmo2"])
def both(request):
    module = made(request.param)
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
    assert sorted(seen) == [0, 1, 2]
    for layer, (attn_BHTT, out_BTHK) in seen.items():
        np.testing.assert_allclose(attn_BHTT, cache[f"blocks.{layer}.attn.hook_pattern"], atol=2e-5)
        z = cache[f"blocks.{layer}.attn.hook_z"].reshape(out_BTHK.shape)
        np.testing.assert_allclose(out_BTHK, z, atol=2e-4)


def test_ov_logits_of_every_head(both):
    """Theirs have one W_V for each group of heads, no gain of a norm after attention, and Gemma's scale elsewhere."""
    model, lens = both
    tokens = torch.arange(0, N, 7)
    for layer in range(model.n_layers):
        values_HUK, targets_HUK = model.ov_factors(layer, tokens, gain=False)
        group = model.n_heads // len(lens.W_V[layer])
        for head in range(model.n_heads):
            with torch.no_grad():
                ov = lens.W_V[layer, head // group] @ lens.W_O[layer, head]
                want = model.embed(tokens) @ ov @ lens.W_U[:, tokens]
            np.testing.assert_allclose(values_HUK[head] @ targets_HUK[head].T, want, rtol=1e-4, atol=1e-3)


def test_losses_of_every_token(both, ids):
    model, lens = both
    with torch.no_grad():
        want = lens(ids, return_type="loss", loss_per_token=True)
    np.testing.assert_allclose(loss_reduction.token_losses(model, ids, range(39), 10_000), want, rtol=1e-4, atol=2e-4)
