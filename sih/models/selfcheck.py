"""Whether a class of model computes what its layout says: passes of a few tokens, once a series.

What does not add up is refused by name, so that an architecture that nobody has tried here is either measured rightly
or not at all. Nothing is checked that the weights at hand do not show: where all gains are 1, as before training, a
gain that is left out goes unseen.

Letters: B texts, T positions, H heads, K d_head, D d_model.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn

from sih.errors import CheckpointError, SihError
from sih.models.layer import Layer
from sih.models.model import Model

TEXTS, TOKENS = 2, 8
# The largest error, relative to the largest number that is compared.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@dataclass
class _Seen:
    """What passed through one layer."""

    inputs_BTD: torch.Tensor = field(init=False)  # of the block
    outputs_BTD: torch.Tensor = field(init=False)
    read_BTD: torch.Tensor = field(init=False)  # by the attention module
    summed_BTD: torch.Tensor = field(init=False)  # put out by W_O
    attn_BHTT: list[torch.Tensor] = field(default_factory=list)
    z_BTHK: list[torch.Tensor] = field(default_factory=list)


@torch.inference_mode()
def self_check(model: Model) -> dict[str, float]:
    """The largest error of every part over all layers, relative; that of attention is absolute.

    Raises:
        SihError: a part beyond the tolerance: which, by how much, for which class.
        CheckpointError: weights that are not finite.
    """
    ids_BT = torch.arange(TEXTS * TOKENS).view(TEXTS, TOKENS) * (model.vocab_size // (TEXTS * TOKENS)) + 1
    ids_BT = (ids_BT % model.vocab_size).to(model.device)
    whole_BTD, of_layers = _watched(model, ids_BT, silent=False)
    _, added = _watched(model, ids_BT, silent=True)
    found: dict[str, float] = {}
    for index, (layer, seen, alone) in enumerate(zip(model.layers, of_layers, added, strict=True)):
        _check_observed(model, index, layer, seen)
        for part, error in (_of_attention(seen) | _of_heads(layer, seen) | _of_stream(layer, alone)).items():
            found[part] = max(found.get(part, 0.0), error)
    embedded_BTD, entered_BTD = model.embed(ids_BT), of_layers[0].inputs_BTD
    if embedded_BTD.shape != entered_BTD.shape:
        raise _refused(model, f"embeddings have {embedded_BTD.shape[-1]} numbers, the stream {entered_BTD.shape[-1]}")
    # A position adds the same to every token, so two tokens at one position differ by their embeddings alone.
    found["embedding"] = _error(embedded_BTD.diff(dim=0), entered_BTD.diff(dim=0))
    unseen_BTD = model.hidden(ids_BT)
    found["hidden states, unobserved"] = _error(unseen_BTD, whole_BTD)
    found["logits"] = _error(model.unembed(unseen_BTD), model.module(ids_BT, use_cache=False).logits)
    tolerance = TOLERANCE[model.module.dtype]
    wrong = {part: error for part, error in found.items() if not error <= tolerance}
    if wrong:
        told = "; ".join(f"{part}: off by {error:.2g}" for part, error in wrong.items())
        raise _refused(model, f"{told}; expected at most {tolerance:g}")
    return found


def _refused(model: Model, why: str) -> SihError:
    return SihError(
        f"{type(model.module).__name__} does not compute what is known of it here: {why}. Its heads cannot be "
        "measured; choose another model, or add its layout to sih/models/"
    )


def _watched(model: Model, ids_BT: torch.Tensor, silent: bool) -> tuple[torch.Tensor, list[_Seen]]:
    """Final hidden states, and what passed through every layer; `silent`: with the MLPs' outputs set to 0."""
    seen = [_Seen() for _ in model.layers]

    def observe(index: int, attn_BHTT: torch.Tensor, z_BTHK: torch.Tensor) -> None:
        seen[index].attn_BHTT.append(attn_BHTT)
        seen[index].z_BTHK.append(z_BTHK)

    with ExitStack() as stack:
        for layer, of_layer in zip(model.layers, seen, strict=True):

            def entered(_, args, kwargs, of_layer: _Seen = of_layer) -> None:
                of_layer.inputs_BTD = _first(args, kwargs)

            def left(_, args, output, of_layer: _Seen = of_layer) -> None:
                of_layer.outputs_BTD = output[0] if isinstance(output, tuple) else output

            def read(_, args, kwargs, of_layer: _Seen = of_layer) -> None:
                of_layer.read_BTD = _first(args, kwargs)

            def summed(_, args, output, of_layer: _Seen = of_layer) -> None:
                of_layer.summed_BTD = output

            hooks = [
                layer.block.register_forward_pre_hook(entered, with_kwargs=True),
                layer.block.register_forward_hook(left),
                layer.attention.register_forward_pre_hook(read, with_kwargs=True),
                layer.output.register_forward_hook(summed),
            ]
            hooks += [part.register_forward_hook(_silenced) for part in _others(layer)] if silent else []
            for hook in hooks:
                stack.callback(hook.remove)
        return model.hidden(ids_BT, observe), seen


def _first(args: tuple, kwargs: dict) -> torch.Tensor:
    """The hidden states that a module is called with: in all of transformers its first argument, or by this name."""
    return args[0] if args else kwargs["hidden_states"]


def _others(layer: Layer) -> list[nn.Module]:
    """The block's parts with matrices in them, but for attention: the MLP, in one piece or in several."""
    return [
        part
        for part in layer.block.children()
        if part is not layer.attention and any(p.ndim > 1 for p in part.parameters())
    ]


def _silenced(module: nn.Module, args, output):
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def _check_observed(model: Model, index: int, layer: Layer, seen: _Seen) -> None:
    """Raises SihError unless the layer was observed once, with as many heads of such a width as its layout says."""
    if len(seen.z_BTHK) != 1:
        raise _refused(model, f"attention of layer {index} was observed {len(seen.z_BTHK)} times; expected once")
    shapes = tuple(seen.z_BTHK[0].shape), tuple(seen.attn_BHTT[0].shape)
    wanted = (TEXTS, TOKENS, layer.n_heads, layer.d_head), (TEXTS, layer.n_heads, TOKENS, TOKENS)
    if shapes != wanted:
        raise _refused(model, f"layer {index}'s heads and attention have shapes {shapes}; expected {wanted}")


def _of_attention(seen: _Seen) -> dict[str, float]:
    """Attention is a causal average: rows sum to 1, and nothing goes to later positions."""
    attn_BHTT = seen.attn_BHTT[0].float()
    return {
        "rows of attention sum to 1": float((attn_BHTT.sum(-1) - 1).abs().max()),
        "attention is causal": float(attn_BHTT.triu(1).abs().max()),
    }


def _of_heads(layer: Layer, seen: _Seen) -> dict[str, float]:
    """z from W_V and attention (the first position attends to itself alone); and what W_O makes of all heads."""
    value_BHTK = torch.einsum("btd,hkd->bhtk", seen.read_BTD.float(), layer.v_HKD)
    if layer.v_bias_HK is not None:
        value_BHTK = value_BHTK + layer.v_bias_HK[:, None]
    if layer.clip is not None:
        value_BHTK = value_BHTK.clamp(-layer.clip, layer.clip)
    z_BTHK = (seen.attn_BHTT[0].float() @ value_BHTK).transpose(1, 2)
    return {
        "W_V": _error(z_BTHK, seen.z_BTHK[0]),
        "W_O": _error(_sum_over_heads(layer, seen), seen.summed_BTD),
    }


def _sum_over_heads(layer: Layer, seen: _Seen) -> torch.Tensor:
    sum_BTD = torch.einsum("bthk,hdk->btd", seen.z_BTHK[0].float(), layer.o_HDK)
    return sum_BTD if layer.o_bias_D is None else sum_BTD + layer.o_bias_D


def _of_stream(layer: Layer, seen: _Seen) -> dict[str, float]:
    """What the block adds to the stream, but for its MLP: the sum over heads, times the scale or behind the norm.

    The norm divides each position by a number of its own, which is fitted here.
    """
    added_BTD = seen.outputs_BTD.float() - seen.inputs_BTD.float()
    wanted_BTD = _sum_over_heads(layer, seen) * layer.scale
    if (gain_D := layer.gain_D) is not None:
        wanted_BTD = wanted_BTD * gain_D
        fit_BT1 = (added_BTD * wanted_BTD).sum(-1, keepdim=True) / wanted_BTD.square().sum(-1, keepdim=True)
        wanted_BTD = wanted_BTD * fit_BT1
    return {"what attention adds to the stream": _error(wanted_BTD, added_BTD)}


def _error(found: torch.Tensor, real: torch.Tensor) -> float:
    """The largest difference over the largest number; of zeros, 0 if both are."""
    if not torch.isfinite(real).all():
        raise CheckpointError("hidden states are NaN or infinite")
    off, size = (found.float() - real.float()).abs().max(), real.float().abs().max()
    return float(off / size) if size > 0 else float(off > 0)
