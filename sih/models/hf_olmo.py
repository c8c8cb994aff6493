"""OLMo's own checkpoints (model_type hf_olmo, as DataDecide's), read as the Llama that they are.

transformers does not know hf_olmo; its class comes with a package of its own, whose code is not needed. With a
root-mean-square norm that has a gain, rotary positions and SwiGLU, the architecture is Llama's under other names:

    att_proj -> q_proj, k_proj, v_proj    attn_out -> o_proj    ff_proj -> up_proj, gate_proj    ff_out -> down_proj

transformers' `olmo` would be wrong, since its norm has no gain. Whatever else a configuration asks for is refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from sih.errors import SihError

MODEL_TYPE = "hf_olmo"
# What Llama has, by OLMo's names; a missing entry has the value that comes second.
_LLAMA: dict[str, tuple[object, object]] = {
    "activation_type": ("swiglu", "swiglu"), "block_type": ("sequential", "sequential"), "rope": (True, False),
    "layer_norm_type": ("rms", "default"), "layer_norm_with_affine": (True, True), "alibi": (False, False),
    "attention_layer_norm": (False, False), "include_bias": (False, False), "bias_for_layer_norm": (False, False),
    "clip_qkv": (None, None), "norm_after": (False, False), "scale_logits": (False, False),
    "scale_emb_init": (False, False),
}  # fmt: skip


def llama_config(olmo: Mapping[str, Any], where: Path) -> LlamaConfig:
    """The Llama configuration of an OLMo one. Raises SihError when it asks for something that Llama has not."""
    for name, (wanted, default) in _LLAMA.items():
        found = olmo.get(name, default)
        if name == "bias_for_layer_norm" and found is None:
            found = olmo.get("include_bias", False)
        if found != wanted:
            raise SihError(f"{where}: an hf_olmo model with {name}={found}; only {name}={wanted} can be read as Llama")
    heads = olmo["n_heads"]
    kv_heads = olmo.get("n_kv_heads") or (1 if olmo.get("multi_query_attention") else heads)
    return LlamaConfig(
        hidden_size=olmo["d_model"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=olmo["n_layers"],
        intermediate_size=(olmo.get("mlp_hidden_size") or olmo["mlp_ratio"] * olmo["d_model"]) // 2,  # half is the gate
        vocab_size=olmo.get("embedding_size") or olmo["vocab_size"],
        max_position_embeddings=olmo["max_sequence_length"],
        rope_parameters={"rope_type": "default", "rope_theta": float(olmo.get("rope_theta", 10000.0))},
        rms_norm_eps=olmo.get("layer_norm_eps") or 1e-5,
        tie_word_embeddings=olmo.get("weight_tying", True),
        hidden_act="silu",
        bos_token_id=None,
        eos_token_id=olmo.get("eos_token_id"),
        pad_token_id=olmo.get("pad_token_id"),
    )


def llama_weights(olmo: Mapping[str, torch.Tensor], config: LlamaConfig) -> dict[str, torch.Tensor]:
    """OLMo's tensors under Llama's names; those with other names keep theirs, and are refused when they are loaded."""
    d_head = config.hidden_size // config.num_attention_heads
    rows = [config.hidden_size, *[config.num_key_value_heads * d_head] * 2]
    found: dict[str, torch.Tensor] = {}
    for name, tensor in olmo.items():
        name = name.removeprefix("model.")
        layer = re.fullmatch(r"transformer\.blocks\.(\d+)\.(\w+)\.weight", name)
        if layer is None:
            found[_TOP.get(name, name)] = tensor
            continue
        parts = _LAYER.get(layer[2], [])
        sizes = rows if len(parts) == 3 else [len(tensor) // max(len(parts), 1)] * len(parts)
        if sum(sizes) != len(tensor) or not parts:
            found[name] = tensor
            continue
        for part, piece in zip(parts, tensor.split(sizes), strict=True):
            found[f"model.layers.{layer[1]}.{part}.weight"] = piece.clone()
    return found


_TOP = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "transformer.ff_out.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": ["input_layernorm"],
    "ff_norm": ["post_attention_layernorm"],
    "att_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn_out": ["self_attn.o_proj"],
    "ff_proj": ["mlp.up_proj", "mlp.gate_proj"],
    "ff_out": ["mlp.down_proj"],
}
