"""GPT-NeoX (Pythia): the only file that knows the architecture's insides.

Letters: B texts, T positions, L layers, H heads, D d_model, K d_head, V vocabulary, U distinct tokens.
"""

import json
import os
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
    PreTrainedTokenizerFast,
)
from transformers.masking_utils import eager_mask
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, eager_attention_forward

from sih.checkpoints import weight_names
from sih.errors import CheckpointError, SihError
from sih.quiet import quiet_transformers

# Called once a layer, in order, with the layer, its attention, and what each head adds up from its values with it,
# before W_O: observe(layer, attn_BHTT, out_BTHK).
Observer = Callable[[int, torch.Tensor, torch.Tensor], None]


def _attention_shown(module: GPTNeoXAttention, *args, **kwargs):
    """Eager attention, shown to the module's observer before it is dropped; no logit changes."""
    output, attn_BHTT = eager_attention_forward(module, *args, **kwargs)
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

    @torch.inference_mode()
    def hidden(self, ids_BT: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """Final hidden states (after the last layer norm), BTD; attention goes to `observe` layer by layer.

        Texts may be padded on the right with any id: attention is causal, so padding changes nothing before it.
        """
        with self._observed(observe):
            return self.module.gpt_neox(ids_BT.to(self.device), use_cache=False).last_hidden_state

    @torch.inference_mode()
    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the vocabulary, float32: (..., D) -> (..., V)."""
        return self.module.lm_head(hidden).float()

    @contextmanager
    def _observed(self, observe: Observer | None):
        wanted = "sdpa" if observe is None else "sih_observed"
        if self.module.config._attn_implementation != wanted:
            self.module.set_attn_implementation(wanted)
        layers = self.module.gpt_neox.layers
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
    """Load one checkpoint, refusing whatever is not exactly it.

    Args:
        folder: config.json and weights.
        shape: expected (layers, heads, d_model); None where anything goes.

    Raises:
        CheckpointError: another architecture or shape, unreadable, missing, mismatched or unknown weights.
    """
    config = _read_config(folder)
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
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{folder}: weights cannot be read: {_first_line(error)}") from None
    wrong = {key: sorted(map(str, info[key]))[:3] for key in ("missing_keys", "mismatched_keys") if info[key]}
    wrong |= {"unexpected_keys": sorted(u)[:3]} if (u := _unknown(info["unexpected_keys"])) else {}
    if wrong:
        raise CheckpointError(f"{folder}: the weights do not fit GPT-NeoX, nothing is filled in at random: {wrong}")
    return Model(module.to(device).eval().requires_grad_(False), device)


def _read_config(folder: Path) -> GPTNeoXConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable config.json ({_first_line(error)})") from None
    if not isinstance(config, GPTNeoXConfig):
        raise CheckpointError(f"{folder}: architecture {config.model_type}; expected gpt_neox (Pythia's)")
    return config


def _unknown(keys: Sequence[str]) -> list[str]:
    """Keys that are not the buffers which old Pythia files carry."""
    return [k for k in keys if not k.endswith(("attention.bias", "masked_bias", "rotary_emb.inv_freq"))]


def context_of(folder: Path) -> int:
    """Positions that the checkpoint in `folder` was made for. Raises CheckpointError without a readable config."""
    return _read_config(folder).max_position_embeddings


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights, or one folder up.

    Raises:
        CheckpointError: there is none.
    """
    file = tokenizer_file(folder)
    try:
        json.loads(file.read_text(encoding="utf-8"))  # tokenizers itself raises a bare Exception
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: no readable tokenizer ({_first_line(error)})") from None
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


def tokenizer_file(folder: Path) -> Path:
    """tokenizer.json beside the weights, or one folder up. Raises CheckpointError when there is none."""
    for place in (folder, folder.parent):
        if (place / "tokenizer.json").is_file():
            return place / "tokenizer.json"
    raise CheckpointError(
        f"{folder}: no tokenizer.json there or one folder up; copy the model's tokenizer into one of them"
    )


def checked_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, refused when it has ids that the embedding has no row for.

    Raises:
        CheckpointError: no tokenizer, no readable config, or more ids than rows.
    """
    tokenizer, rows = load_tokenizer(folder), _read_config(folder).vocab_size
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} ids, the weights {rows} embedding rows; "
            "expected the tokenizer that the model was trained with"
        )
    return tokenizer


FEWEST_TOKENS = 256
MOST_TOKENS = {"cpu": 8192, "cuda": 65536, "mps": 8192}  # beyond, larger passes are no faster


def tokens_in_a_pass(folder: Path, device: torch.device) -> int:
    """How many tokens a forward pass may hold, from all of the device's memory and the model's shape.

    A quarter of the memory for what a pass holds at its largest: about 16 hidden states and, with attention looked
    at, 6 numbers for each head and earlier position, of texts of 512 tokens. All of the memory, not the free part,
    so that one machine always takes the same batches. Raises CheckpointError without a readable config.
    """
    config = _read_config(folder)
    bytes_per_token = 4 * (16 * config.hidden_size + 6 * config.num_attention_heads * 512)
    fitting = _memory(device) // 4 // bytes_per_token
    return int(min(max(fitting, FEWEST_TOKENS), MOST_TOKENS[device.type]))


def _memory(device: torch.device) -> int:
    """Bytes of memory that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether a pass did not fit: torch has a class for it on accelerators, and only words on the CPU."""
    words = ("not enough memory", "can't allocate memory", "out of memory", "could not create a primitive")  # oneDNN's
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error).lower() for w in words)


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else the CPU. Raises SihError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SihError(f"device={name}: {_first_line(error)}; expected auto, cpu, cuda, cuda:N or mps") from None
    return device


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
