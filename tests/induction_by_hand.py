"""A GPT-NeoX whose weights are written by hand: one head attends to the token before, one copies what followed last time.

The stream has a place for each token: where it is said (A), where the token before it is (B), and where it is predicted
(C). All other heads have small random weights, and the MLPs write nothing.
"""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

TOKENS, HEADS, K, ROTARY = 24, 4, 32, 8
A, B, C = (slice(n * TOKENS, (n + 1) * TOKENS) for n in range(3))
PREVIOUS, INDUCTION = (0, 0), (1, 0)


@torch.no_grad()
def module(seed: int = 0) -> GPTNeoXForCausalLM:
    """The model, of two layers and four heads."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=TOKENS, hidden_size=HEADS * K, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=8,
        max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": ROTARY / K},
    )  # fmt: skip
    found = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    one = torch.eye(TOKENS)
    net = found.gpt_neox
    net.embed_in.weight.zero_()[:, A] = one
    found.lm_head.weight.zero_()[:, C] = 0.7 * one
    for layer in net.layers:
        layer.mlp.dense_4h_to_h.weight.zero_()
        layer.mlp.dense_4h_to_h.bias.zero_()
        for part in (layer.attention.query_key_value, layer.attention.dense):
            part.weight.normal_(0, 0.02)
            part.bias.zero_()
    previous, copying = (net.layers[n].attention for n, _ in (PREVIOUS, INDUCTION))
    for attention in (previous, copying):
        attention.query_key_value.weight[: 3 * K].zero_()
        attention.dense.weight[:, :K].zero_()
    # Query and key of the first are the same at all positions, but for rotary angles: the query's is one token behind.
    angle = 10000.0 ** (-torch.arange(ROTARY // 2) / (ROTARY // 2))
    bias = previous.query_key_value.bias
    bias[: ROTARY // 2], bias[ROTARY // 2 : ROTARY] = 60 * torch.cos(angle), -60 * torch.sin(angle)
    bias[K : K + ROTARY // 2] = 60
    previous.query_key_value.weight[2 * K : 2 * K + TOKENS, A] = one
    previous.dense.weight[B, :TOKENS] = one / 11  # since norms multiply the one place of a token by about 11
    # Query of the second: the token here; key: the token before; beyond the rotary dimensions.
    copying.query_key_value.weight[ROTARY : ROTARY + TOKENS, A] = 4 * one
    copying.query_key_value.weight[K + ROTARY : K + ROTARY + TOKENS, B] = one
    copying.query_key_value.weight[2 * K : 2 * K + TOKENS, A] = one
    copying.dense.weight[C, :TOKENS] = one
    return found
