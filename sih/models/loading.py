"""Loading a checkpoint of any architecture that transformers knows and whose attention can be observed."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sih.checkpoints.files import weight_names
from sih.checkpoints.quiet import quiet_transformers
from sih.errors import CheckpointError, SihError, first_line
from sih.models.exhausted import is_out_of_memory
from sih.models.model import Model
from sih.models.observing import check_observable

# Buffers that old files of GPT-NeoX, GPT-2 and Llama contain.
_BUFFERS = ("attention.bias", "attn.bias", "masked_bias", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class Shape:
    """What config.json says of a model's size; `vocabulary` are the rows of the embedding."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    context: int


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
        SihError: an architecture that cannot be measured.
        CheckpointError: another shape; unreadable, missing, mismatched or unknown weights.
    """
    config, cls = _config_and_class(folder)
    has = _shape(config)
    found = (has.layers, has.heads, has.width)
    if any(want is not None and want != have for want, have in zip(shape, found, strict=True)):
        raise CheckpointError(f"{folder}: layers, heads, width are {found}; expected {tuple(shape)}")
    weight_files(folder)
    try:
        with quiet_transformers():
            module, info = cls.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                weights_only=True,
                attn_implementation="eager",
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
    unknown = sorted(key for key in info["unexpected_keys"] if not key.endswith(_BUFFERS))
    wrong |= {"unexpected_keys": unknown[:3]} if unknown else {}
    if wrong:
        raise CheckpointError(
            f"{folder}: the weights do not fit {cls.__name__}, and none are filled in at random: {wrong}"
        )
    return Model(module.to(device).eval().requires_grad_(False), device)


def shape_of(folder: Path) -> Shape:
    """The shape of the checkpoint in `folder`.

    Raises:
        SihError: an architecture that cannot be measured.
        CheckpointError: no readable config.json.
    """
    return _shape(_config_and_class(folder)[0])


def _shape(config: PreTrainedConfig) -> Shape:
    return Shape(
        config.num_hidden_layers, config.num_attention_heads, config.hidden_size, config.vocab_size,
        config.max_position_embeddings,
    )  # fmt: skip


def _config_and_class(folder: Path) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """config.json and transformers' own class for it; no code from a model's folder is run."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise SihError(
                f"{folder}: this architecture comes as code of its own, which is never run; "
                "expected one that transformers has"
            ) from None
        raise CheckpointError(f"{folder}: no readable config.json ({first_line(error)})") from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SihError(f"{folder}: architecture {config.model_type}; expected a causal language model")
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    check_observable(cls)
    return config, cls
