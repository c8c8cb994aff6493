"""A GPT-NeoX module as a TransformerLens model: another implementation of the architecture, written by others."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_neox_weights
from transformers import GPTNeoXForCausalLM


def hooked(module: GPTNeoXForCausalLM) -> HookedTransformer:
    """The same weights, unfolded and uncentred."""
    c = module.config
    d_head = c.hidden_size // c.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        d_head=d_head,
        n_heads=c.num_attention_heads,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        n_ctx=c.max_position_embeddings,
        eps=c.layer_norm_eps,
        act_fn=c.hidden_act,
        parallel_attn_mlp=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=round(c.rope_parameters["partial_rotary_factor"] * d_head),
        normalization_type="LN",
        default_prepend_bos=False,
        device="cpu",
    )
    model = HookedTransformer(config)
    with torch.no_grad():
        model.load_state_dict(convert_neox_weights(module, config), strict=False)
    return model.eval()
