"""Query, key and value in one matrix, head by head: GPT-NeoX (Pythia), and GPT-BigCode with keys for every head."""

from typing import Any

from sih.models.layer import Layer, heads_of, matrix


def layer(block: Any, attention: Any) -> Layer | None:
    """The layer, if its weights lie like this: for each head d_head rows of query, then of key, then of value."""
    if hasattr(attention, "query_key_value") and hasattr(attention, "dense"):
        fused, output, d_head = attention.query_key_value, attention.dense, attention.head_size
    elif hasattr(attention, "c_attn") and not getattr(attention, "multi_query", True):
        fused, output, d_head = attention.c_attn, attention.c_proj, attention.head_dim
    else:
        return None
    weight_H3KD, bias_H3K = heads_of(matrix(fused), 3, d_head), heads_of(fused.bias, 3, d_head)
    return Layer(block, attention, output, d_head, weight_H3KD[:, 2], None if bias_H3K is None else bias_H3K[:, 2])
