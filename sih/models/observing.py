"""Attention shown while a model runs: a function that transformers' attention modules call in place of their own.

It calls the `eager_attention_forward` of the module's own file, since grouped keys, soft caps and scales differ from
class to class.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from sih.errors import SihError
from sih.models.layer import Layer

# Called once per layer, in order, with the layer, its attention, and each head's attention-weighted sum of values
# (its output z before W_O): observe(layer, attn_BHTT, out_BTHK).
Observer = Callable[[int, torch.Tensor, torch.Tensor], None]

NAME = "sih_observed"


def _attention_shown(module: nn.Module, *args, **kwargs):
    """Eager attention, shown to the module's observer before it is dropped; no logit changes.

    A module with a `sih_pattern` attends as that says, whatever its queries and keys.
    """
    attn_BHTT = getattr(module, "sih_pattern", None)
    if attn_BHTT is None:
        output, attn_BHTT = sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)
    else:
        value_BGTK = args[2]
        value_BHTK = value_BGTK.repeat_interleave(attn_BHTT.shape[1] // value_BGTK.shape[1], dim=1)
        output = (attn_BHTT @ value_BHTK).transpose(1, 2).contiguous()
    observe = getattr(module, "sih_observer", None)
    if observe is not None:
        observe(attn_BHTT, output)
    return output, None


# Without the mask of the same name, attention would silently not be causal.
AttentionInterface.register(NAME, _attention_shown)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def observed(module: PreTrainedModel, layers: Sequence[Layer], observe: Observer | None):
    """While this lasts, `observe` sees every layer; None: the fastest attention that the class has, unseen."""
    forced = any(getattr(layer.attention, "sih_pattern", None) is not None for layer in layers)
    unseen = observe is None and not forced
    wanted = "sdpa" if unseen and module._supports_sdpa else NAME  # sdpa knows no soft caps
    if module.config._attn_implementation != wanted:
        module.set_attn_implementation(wanted)
    for index, layer in enumerate(layers):
        layer.attention.sih_observer = None if observe is None else partial(observe, index)
    try:
        yield
    finally:
        for layer in layers:
            layer.attention.sih_observer = None


def check_observable(cls: type[PreTrainedModel]) -> None:
    """Raises SihError for a class whose attention never asks which function to call, so that none of it is seen."""
    if not cls._can_set_attn_implementation() or not hasattr(sys.modules[cls.__module__], "eager_attention_forward"):
        raise SihError(
            f"{cls.__name__} computes attention by itself and calls no registered function, so its heads cannot be "
            "observed; expected a class that does, such as those of GPT-NeoX, GPT-2, Llama, OLMo or Qwen"
        )
