"""Replacing what heads put out: against a forward pass by hand, TransformerLens' hooks, and identities."""

import architectures
import numpy as np
import pytest
import torch
from conftest import random_module
from lens import hooked
from torch.nn.functional import gelu, layer_norm, linear, softmax

from sih.checkpoints import corpus
from sih.models import replacing
from sih.models.layer import matrix
from sih.models.model import Model

N = len(corpus.VOCABULARY)
LAYERS, HEADS, K = 3, 4, 8
SET = [(2, 3), (0, 1), (1, 0), (0, 2)]


@pytest.fixture(scope="module")
def module():
    return random_module(N, layers=LAYERS, heads=HEADS, width=HEADS * K)


@pytest.fixture(scope="module")
def model(module):
    return Model(module, torch.device("cpu"))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(N, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def means(model):
    texts = torch.randint(N, (5, 20), generator=torch.Generator().manual_seed(1))
    return replacing.mean_outputs(model, texts, 40)


def logits(model, ids_BT, *contexts):
    from contextlib import ExitStack

    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        return model.unembed(model.hidden(ids_BT))


def test_the_means_are_over_texts_and_positions_from_1_on(model):
    texts = torch.randint(N, (5, 20), generator=torch.Generator().manual_seed(1))
    z = replacing.outputs(model, texts)
    want = torch.stack([z[layer][:, 1:].mean((0, 1)) for layer in range(LAYERS)])
    for batch_tokens in (20, 60, 1000):
        torch.testing.assert_close(replacing.mean_outputs(model, texts, batch_tokens), want)


@torch.no_grad()
def by_hand(module, ids_T, layer_, head_, new_K, positions, patterns=None):
    """One text, position by position and head by head; transformers is asked only for its attention patterns.

    The stream after a layer is the stream + attention + MLP, both read from the stream before [GPT-NeoX, parallel].
    Patterns are recomputed from the changed stream, unless they are given.
    """
    net, c = module.gpt_neox, module.config
    x_TD = net.embed_in.weight[ids_T]
    turn = round(c.rope_parameters["partial_rotary_factor"] * K)
    frequency = 10000.0 ** (-torch.arange(0, turn, 2) / turn)
    for number, layer in enumerate(net.layers):
        norm, attention = layer.input_layernorm, layer.attention
        h_TD = layer_norm(x_TD, (HEADS * K,), norm.weight, norm.bias, norm.eps)
        qkv_THC = linear(h_TD, attention.query_key_value.weight, attention.query_key_value.bias).view(-1, HEADS, 3 * K)
        out_TD = attention.dense.bias.repeat(len(ids_T), 1)
        for head in range(HEADS):
            q_TK, k_TK, v_TK = qkv_THC[:, head].split(K, dim=-1)
            turned = []
            for u_TK in (q_TK, k_TK):
                angle_TR = torch.arange(len(ids_T))[:, None] * frequency
                cos, sin = (torch.cat([f(angle_TR)] * 2, -1) for f in (torch.cos, torch.sin))
                a, b = u_TK[:, : turn // 2], u_TK[:, turn // 2 : turn]
                turned.append(torch.cat([u_TK[:, :turn] * cos + torch.cat([-b, a], -1) * sin, u_TK[:, turn:]], -1))
            for t in range(len(ids_T)):
                row = softmax(turned[0][t] @ turned[1][: t + 1].T / K**0.5, 0)
                if patterns is not None:
                    row = patterns[number][head, t, : t + 1]
                z_K = row @ v_TK[: t + 1]
                if (number, head) == (layer_, head_) and t in positions:
                    z_K = new_K
                out_TD[t] += attention.dense.weight[:, head * K : (head + 1) * K] @ z_K
        norm = layer.post_attention_layernorm
        m_TD = layer_norm(x_TD, (HEADS * K,), norm.weight, norm.bias, norm.eps)
        up, down = layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h
        x_TD = x_TD + out_TD + linear(gelu(linear(m_TD, up.weight, up.bias)), down.weight, down.bias)
    norm = net.final_layer_norm
    return module.lm_head(layer_norm(x_TD, (HEADS * K,), norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("head", [(0, 1), (2, 3)])
def test_one_head_against_a_forward_pass_by_hand(module, model, ids, means, head):
    everywhere, last = range(1, 20), [19]
    patterns = replacing.patterns(model, ids[:1])
    for new, positions, contexts in (
        (means, everywhere, [replacing.replaced(model, [head], means)]),
        (0 * means, everywhere, [replacing.replaced(model, [head], 0 * means)]),
        (means, last, [replacing.replaced(model, [head], means, torch.tensor([19]))]),
        (means, everywhere, [replacing.patterns_forced(model, patterns), replacing.replaced(model, [head], means)]),
    ):
        forced = {n: a[0] for n, a in patterns.items()} if len(contexts) == 2 else None
        want = by_hand(module, ids[0], *head, new[head], positions, forced)
        found = logits(model, ids[:1], *contexts)[0]
        torch.testing.assert_close(found, want, rtol=1e-3, atol=2e-4)
    clean = logits(model, ids[:1])[0]
    assert (found - clean).abs().max() > 0.1, "taking the head out does something"


def test_sets_against_the_hooks_of_transformer_lens(module, model, ids, means):
    lens = hooked(module)
    other = replacing.outputs(model, ids.flip(0))

    def hook(value):
        def edit(z, hook):
            for layer, head in SET:
                if layer == hook.layer():
                    z[:, 1:, head] = value[layer].expand_as(z)[:, 1:, head]
            return z

        return edit

    for value in (means, 0 * means, other):
        names = [(f"blocks.{layer}.attn.hook_z", hook(value)) for layer in range(LAYERS)]
        with torch.no_grad():
            want = lens.run_with_hooks(ids, fwd_hooks=names)
        found = logits(model, ids, replacing.replaced(model, SET, value))
        np.testing.assert_allclose(found.log_softmax(-1), want.log_softmax(-1), atol=5e-4)


def test_no_head_changes_nothing_and_the_order_does_not_matter(model, ids, means):
    clean = logits(model, ids)
    assert torch.equal(logits(model, ids, replacing.replaced(model, [], means)), clean)
    with replacing.streams_kept(model, range(LAYERS)) as streams:
        model.hidden(ids)
    for layer, stream in streams.items():
        assert torch.equal(logits(model, ids, replacing.begun_at(model, layer, stream)), clean)
    first = logits(model, ids, replacing.replaced(model, SET, means))
    assert not torch.allclose(first, clean)
    assert torch.equal(logits(model, ids, replacing.replaced(model, SET[::-1] + SET[:1], means)), first)
    assert torch.equal(logits(model, ids), clean), "everything is put back"


def test_own_outputs_in_place_of_themselves_change_nothing(model, ids):
    own = replacing.outputs(model, ids)
    assert torch.equal(logits(model, ids, replacing.replaced(model, SET, own)), logits(model, ids))


def test_own_patterns_in_place_of_themselves_change_nothing(model, ids):
    forced = logits(model, ids, replacing.patterns_forced(model, replacing.patterns(model, ids)))
    torch.testing.assert_close(forced, logits(model, ids), rtol=1e-4, atol=1e-4)


def test_begun_at_the_first_replaced_layer_is_the_whole_pass(model, ids, means):
    late = [(1, 2), (2, 0)]
    with replacing.streams_kept(model, [1]) as streams:
        model.hidden(ids)
    whole = logits(model, ids, replacing.replaced(model, late, means))
    begun = logits(model, ids, replacing.begun_at(model, 1, streams[1]), replacing.replaced(model, late, means))
    assert torch.equal(whole, begun)


def test_position_0_and_other_positions_stay(model, ids, means):
    clean = replacing.outputs(model, ids)
    with replacing.replaced(model, [(0, 1)], means):
        seen = replacing.outputs(model, ids)
    assert torch.equal(seen[0][:, 0], clean[0][:, 0])
    torch.testing.assert_close(seen[0][:, 1:, 1], means[0, 1].expand(3, 19, K))
    at = torch.tensor([3, 19, 7])
    with replacing.replaced(model, [(0, 1), (0, 2)], means, at):
        seen = replacing.outputs(model, ids)
    changed = (seen[0] != clean[0]).any(-1)
    want = torch.zeros_like(changed)
    want[torch.arange(3)[:, None], at[:, None], torch.tensor([1, 2])] = True
    assert torch.equal(changed, want)


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_every_layout(name):
    """Zeros in place of a head's output are its columns of W_O set to zero; begun late is the whole pass."""
    module = architectures.made(name)
    model = Model(module, torch.device("cpu"))
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(3))
    zeros = torch.zeros(model.n_layers, model.n_heads, model.d_head)
    clean = model.hidden(ids)
    with replacing.streams_kept(model, [1, 2]) as streams:
        model.hidden(ids)
    for layer, stream in streams.items():
        with replacing.begun_at(model, layer, stream):
            assert torch.equal(model.hidden(ids), clean)
    layer, head = model.n_layers - 2, model.n_heads - 1
    with replacing.begun_at(model, layer, streams[layer]), replacing.replaced(model, [(layer, head)], zeros):
        begun = model.hidden(ids)
    patterns = replacing.patterns(model, ids)
    with replacing.patterns_forced(model, patterns):
        torch.testing.assert_close(model.hidden(ids), clean, rtol=1e-3, atol=1e-4)
    copies = replacing.at_the_end(model, ids, [(0, 0), (layer, head)], zeros)[:, :, 0]
    for copy, heads in zip(copies, [[], [(0, 0)], [(layer, head)]], strict=True):
        with replacing.replaced(model, heads, zeros, torch.tensor([11, 11])):
            torch.testing.assert_close(copy, model.hidden(ids)[:, -1], rtol=1e-3, atol=1e-4)
    at = model.layers[layer]
    first = replacing.outputs(model, ids)[layer][:, 0, head] @ at.o_HDK[head].mT  # which stays at position 0
    weight = matrix(at.output)
    with torch.no_grad():
        weight[:, head * at.d_head : (head + 1) * at.d_head] = 0

    def restored(module, args, out):
        out = out.clone()
        out[:, 0] += first
        return out

    with torch.no_grad():
        handle = at.output.register_forward_hook(restored)
        want = model.hidden(ids)
        handle.remove()
    torch.testing.assert_close(begun, want, rtol=1e-3, atol=1e-4)
    assert (begun - clean).abs().max() > 1e-3
