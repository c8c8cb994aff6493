"""GPT-NeoX (Pythia): the only file that knows the architecture's insides.

Letters: B texts, T positions, L layers, H heads, D d_model, K d_head, V vocabulary, U distinct tokens.
"""

import pickle
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)
from transformers.masking_utils import eager_mask
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, eager_attention_forward

from sih.checkpoints.files import weight_names
from sih.checkpoints.quiet import quiet_transformers
from sih.errors import CheckpointError, first_line
from sih.models.exhausted import is_out_of_memory

# Called once per layer, in order, with the layer, its attention, and each head's attention-weighted sum of values
# (its output before W_O): observe(layer, attn_BHTT, out_BTHK).
Observer = Callable[[int, torch.Tensor, torch.Tensor], None]


def _attention_shown(module: GPTNeoXAttention, query, key, value, *args, **kwargs):
    """Eager attention, shown to the module's observer before it is dropped; no logit changes.

    A module with a `sih_pattern` attends as that says, whatever its queries and keys.
    """
    attn_BHTT = getattr(module, "sih_pattern", None)
    if attn_BHTT is None:
        output, attn_BHTT = eager_attention_forward(module, query, key, value, *args, **kwargs)
    else:
        output = (attn_BHTT @ value).transpose(1, 2).contiguous()
    observe = getattr(module, "sih_observer", None)
    if observe is not None:
        observe(module.layer_idx, attn_BHTT, output)
    return output, None


# Without the mask of the same name, attention would silently not be causal.
AttentionInterface.register("sih_observed", _attention_shown)
AttentionMaskInterface.register("sih_observed", eager_mask)


@dataclass(frozen=True)
class Model:
    """A checkpoint in memory, ready to measure: no gradients, evaluation mode."""

    module: GPTNeoXForCausalLM
    device: torch.device

    @property
    def n_layers(self) -> int:
        return self.module.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        return self.module.config.num_attention_heads

    @property
    def d_head(self) -> int:
        return self.module.config.hidden_size // self.n_heads

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; Pythia pads it beyond the tokenizer's ids."""
        return self.module.config.vocab_size

    @property
    def context(self) -> int:
        return self.module.config.max_position_embeddings

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        """The layers, each a module from the stream BTD to the stream BTD."""
        return list(self.module.gpt_neox.layers)

    def output_projection(self, layer: int) -> torch.nn.Module:
        """W_O and its bias: its input is what the layer's heads put out, z, one head after another (B, T, HK)."""
        return self.module.gpt_neox.layers[layer].attention.dense

    def attention(self, layer: int) -> torch.nn.Module:
        """The layer's attention module, which `sih_pattern` can be set on."""
        return self.module.gpt_neox.layers[layer].attention

    def hidden(
        self,
        ids_BT: torch.Tensor,
        observe: Observer | None = None,
        gradients: bool = False,
        seen_TT: torch.Tensor | None = None,
        position_T: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states (after the last layer norm), BTD; attention goes to `observe` layer by layer.

        Texts may be padded on the right with any id: attention is causal, so padding changes nothing before it.
        `gradients`: whether to record what a backward pass needs. `seen_TT`: which tokens (columns) each token attends
        to, instead of itself and all before it; `position_T`: where it stands, instead of its index.

        Raises:
            CheckpointError: hidden states that are not finite, as those of broken weights are.
        """
        with torch.inference_mode(not gradients), self._observed(observe):
            placed: dict[str, torch.Tensor] = {}
            if seen_TT is not None and position_T is not None:
                mask_BTT = seen_TT.to(self.device).expand(len(ids_BT), 1, -1, -1)
                placed = {"attention_mask": mask_BTT, "position_ids": position_T.to(self.device)[None]}
            hidden_BTD = self.module.gpt_neox(ids_BT.to(self.device), use_cache=False, **placed).last_hidden_state
        if not torch.isfinite(hidden_BTD).all():
            raise CheckpointError("hidden states are NaN or infinite")
        return hidden_BTD

    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the vocabulary, float32: (..., D) -> (..., V)."""
        with torch.inference_mode(hidden.is_inference()):
            return self.module.lm_head(hidden).float()

    @contextmanager
    def _observed(self, observe: Observer | None):
        layers = self.module.gpt_neox.layers
        forced = any(getattr(layer.attention, "sih_pattern", None) is not None for layer in layers)
        wanted = "sdpa" if observe is None and not forced else "sih_observed"
        if self.module.config._attn_implementation != wanted:
            self.module.set_attn_implementation(wanted)
        for layer in layers:
            layer.attention.sih_observer = observe
        try:
            yield
        finally:
            for layer in layers:
                layer.attention.sih_observer = None

    @torch.inference_mode()
    def ov_factors(self, layer: int, ids_U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two sides of the OV circuit over the given tokens, for all heads of a layer, float32.

        `values_HUK @ targets_HUK.mT` is ov_logits_HUU: row u the logits x_u W_V^h W_O^h W_U on the given
        tokens, with x_u the raw input embedding; no layer norm and no bias [Ren §3].
        """
        attention = self.module.gpt_neox.layers[layer].attention
        heads, d_head = self.n_heads, self.d_head
        ids_U = ids_U.to(self.device)
        # query_key_value is laid out head by head as (query, key, value), each d_head rows.
        v_HKD = attention.query_key_value.weight.view(heads, 3, d_head, -1)[:, 2].float()
        o_DHK = attention.dense.weight.view(-1, heads, d_head).float()
        embedding_UD = self.module.gpt_neox.embed_in.weight[ids_U].float()
        unembedding_UD = self.module.lm_head.weight[ids_U].float()
        values_HUK = embedding_UD @ v_HKD.mT
        targets_HUK = unembedding_UD @ o_DHK.permute(1, 0, 2)
        return values_HUK, targets_HUK


def weight_files(folder: Path) -> list[Path]:
    """The files that `load` reads weights from: safetensors where there are any, else .bin."""
    found = weight_names(f.name for f in folder.iterdir()) if folder.is_dir() else []
    if found:
        return [folder / name for name in found]
    raise CheckpointError(f"{folder}: no weights; expected model.safetensors (or shards) or pytorch_model.bin")


def load(
    folder: Path, device: torch.device, dtype: str = "float32", shape: Sequence[int | None] = (None, None, None)
) -> Model:
    """Load one checkpoint, refusing weights that do not fit the model exactly.

    Args:
        folder: has config.json and the weights.
        shape: expected (layers, heads, d_model); None where any value will do.

    Raises:
        CheckpointError: another architecture or shape; unreadable, missing, mismatched or unknown weights.
    """
    config = read_config(folder)
    found = (config.num_hidden_layers, config.num_attention_heads, config.hidden_size)
    if any(want is not None and want != have for want, have in zip(shape, found, strict=True)):
        raise CheckpointError(f"{folder}: layers, heads, width are {found}; expected {tuple(shape)}")
    weight_files(folder)
    try:
        with quiet_transformers():
            module, info = GPTNeoXForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                weights_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported in `info`, and refused below
            )
    except pickle.UnpicklingError:
        raise CheckpointError(f"{folder}: weights cannot be read: a .bin file holds more than plain tensors") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, MemoryError) as error:
        if is_out_of_memory(error):
            raise CheckpointError(f"{folder}: out of memory while loading the weights: {first_line(error)}") from None
        raise CheckpointError(f"{folder}: weights cannot be read: {first_line(error)}") from None
    wrong = {key: sorted(map(str, info[key]))[:3] for key in ("missing_keys", "mismatched_keys") if info[key]}
    wrong |= {"unexpected_keys": sorted(u)[:3]} if (u := _unknown(info["unexpected_keys"])) else {}
    if wrong:
        raise CheckpointError(f"{folder}: the weights do not fit GPT-NeoX, and none are filled in at random: {wrong}")
    return Model(module.to(device).eval().requires_grad_(False), device)


def read_config(folder: Path) -> GPTNeoXConfig:
    """The checkpoint's config.json. Raises CheckpointError when it is unreadable or of another architecture."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable config.json ({first_line(error)})") from None
    if not isinstance(config, GPTNeoXConfig):
        raise CheckpointError(f"{folder}: architecture {config.model_type}; expected gpt_neox (Pythia's)")
    return config


def _unknown(keys: Sequence[str]) -> list[str]:
    """The keys other than the buffers that old Pythia files contain."""
    return [k for k in keys if not k.endswith(("attention.bias", "masked_bias", "rotary_emb.inv_freq"))]


def context_of(folder: Path) -> int:
    """The context length of the checkpoint in `folder`. Raises CheckpointError without a readable config."""
    return read_config(folder).max_position_embeddings
