"""Query, key and value each in a matrix of their own: Llama and all that came after it, OPT, Phi, StableLM."""

from typing import Any

from torch import nn

from sih.models.layer import Layer, heads_of, matrix

OUTPUTS = ("o_proj", "out_proj", "dense")


def layer(block: Any, attention: Any) -> Layer | None:
    """The layer, if its weights lie like this; heads may share keys and values."""
    output = next((getattr(attention, name) for name in OUTPUTS if hasattr(attention, name)), None)
    if output is None or not hasattr(attention, "v_proj"):
        return None
    d_head = attention.head_dim
    return Layer(
        block, attention, output, d_head,
        heads_of(matrix(attention.v_proj), d_head), heads_of(attention.v_proj.bias, d_head),
        clip=getattr(attention.config, "clip_qkv", None),
        after=_norm_after(block),
        scale=getattr(block, "residual_multiplier", 1.0),
    )  # fmt: skip


def _norm_after(block: Any) -> nn.Module | None:
    """The norm of what attention puts out. In Llama, the norm that is called post-attention is that before the MLP."""
    if hasattr(block, "post_self_attn_layernorm"):
        return block.post_self_attn_layernorm
    return block.post_attention_layernorm if hasattr(block, "post_feedforward_layernorm") else None
