"""Query, key and value in one matrix, first all queries and last all values: GPT-2, GPT-BigCode with one key, Phi-3."""

from typing import Any

from sih.models.layer import Layer, heads_of, matrix


def layer(block: Any, attention: Any) -> Layer | None:
    """The layer, if its weights lie like this; heads may share keys and values.

    W_O has as many inputs as there are queries; half of the other outputs are values.
    """
    if hasattr(attention, "c_attn") and getattr(attention, "multi_query", True):
        fused, output = attention.c_attn, attention.c_proj
    elif hasattr(attention, "qkv_proj"):
        fused, output = attention.qkv_proj, attention.o_proj
    else:
        return None
    weight_ID, bias_I, d_head = matrix(fused), fused.bias, attention.head_dim
    first = (len(weight_ID) + matrix(output).shape[1]) // 2
    of_values = heads_of(weight_ID[first:], d_head), heads_of(None if bias_I is None else bias_I[first:], d_head)
    return Layer(block, attention, output, d_head, *of_values)
