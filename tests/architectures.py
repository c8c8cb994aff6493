"""Small random models of every architecture whose layout is tried, with weights far from their initial ones."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
CRFM = GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}

# model_type and what its small config is given, by a name
ARCHITECTURES = {
    "gpt_neox": ("gpt_neox", SIZES),
    "gpt2": ("gpt2", GPT2),
    "gpt2-crfm": ("gpt2", CRFM),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "gpt_bigcode-by-head": ("gpt_bigcode", GPT2 | {"multi_query": False}),
    "llama": ("llama", GROUPED),
    "llama-biases": ("llama", GROUPED | {"attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", GROUPED | {"sliding_window": 5}),
    "qwen2": ("qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 20}),
    "gemma": ("gemma", GROUPED | {"head_dim": 20}),
    "gemma2": ("gemma2", GROUPED | {"head_dim": 20, "sliding_window": 5, "query_pre_attn_scalar": 20,
                                    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", GROUPED | {"head_dim": 20, "sliding_window": 5, "query_pre_attn_scalar": 20}),
    "olmo": ("olmo", GROUPED | {"clip_qkv": 0.5}),
    "olmo2": ("olmo2", GROUPED),
    "olmo3": ("olmo3", GROUPED | {"sliding_window": 5}),
    "olmoe": ("olmoe", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", GROUPED),
    "phi": ("phi", GROUPED | {"num_attention_heads": 3, "num_key_value_heads": 1}),
    "phi3": ("phi3", GROUPED),
    "stablelm": ("stablelm", GROUPED | {"num_attention_heads": 3, "num_key_value_heads": 1, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", GROUPED | {"num_attention_heads": 3, "num_key_value_heads": 1, "use_parallel_residual": True,
                                                 "qk_layernorm": True}),
    "apertus": ("apertus", GROUPED),
    "opt": ("opt", SIZES | {"ffn_dim": 80, "word_embed_proj_dim": 48}),
    "granite": ("granite", GROUPED | {"embedding_multiplier": 3.0, "residual_multiplier": 0.3, "logits_scaling": 2.0,
                                      "attention_multiplier": 0.1}),
    "cohere": ("cohere", GROUPED | {"logit_scale": 0.5}),
    "starcoder2": ("starcoder2", GROUPED),
}  # fmt: skip
# These compute attention by themselves, so that nothing of it can be seen.
UNSEEN = {
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 4},
    "gpt_neo": {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "gptj": {"n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "mpt": {"d_model": 48, "n_layers": 2, "n_heads": 4},
    "falcon": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def made(name: str, **changed) -> PreTrainedModel:
    """The architecture's small model: every weight drawn, also the biases and gains that begin as 0 and 1."""
    model_type, options = ARCHITECTURES[name]
    return of(model_type, **{**options, **changed})


def of(model_type: str, **options) -> PreTrainedModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **COMMON, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * drawn if parameter.ndim > 1 else parameter + 0.3 * drawn)
    return module.eval().requires_grad_(False)
