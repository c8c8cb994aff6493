"""Replacing what attention heads put out, next to watching it: the operations behind every intervention.

z[h, t] is what head h adds up from its values at position t, before W_O. W_O's bias belongs to no head and stays.
Position 0 is an attention sink with an output of its own, so it is left as it is.

Letters: B texts, T positions, L layers, H heads, D d_model, K d_head.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from sih.models.model import Model

Head = tuple[int, int]  # layer, head
# What heads put out instead, by layer: (H, K), the same everywhere, or (B, T, H, K); for `at_the_end` (B, H, K).
Instead = Sequence[torch.Tensor] | Mapping[int, torch.Tensor] | torch.Tensor


@contextmanager
def replaced(
    model: Model, heads: Collection[Head], instead: Instead, at_B: torch.Tensor | None = None
) -> Iterator[None]:
    """Inside, `hidden` runs with z[h, t] := instead[layer][..., t, h, :] for the given heads.

    Means as `instead` (see `mean_outputs`) are mean ablation, zeros zero ablation, another text's outputs (see
    `outputs`) resampling. The order of heads does not matter, and without any nothing is changed.

    Args:
        at_B: only at this position of each text; at all positions from 1 on when None.
    """
    of_layer: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        of_layer.setdefault(layer, []).append(head)

    def edit(layer: int, chosen: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        def edited(z_BTHK: torch.Tensor) -> torch.Tensor:
            z_BTHK = z_BTHK.clone()
            new_BTHK = instead[layer].to(z_BTHK).expand_as(z_BTHK)
            if at_B is None:
                z_BTHK[:, 1:, chosen] = new_BTHK[:, 1:, chosen]
            else:
                rows = torch.arange(len(z_BTHK), device=z_BTHK.device)[:, None]
                at = at_B.to(z_BTHK.device)[:, None]
                columns = torch.tensor(chosen, device=z_BTHK.device)
                z_BTHK[rows, at, columns] = new_BTHK[rows, at, columns]
            return z_BTHK

        return edited

    with outputs_through(model, {layer: edit(layer, chosen) for layer, chosen in of_layer.items()}):
        yield


@contextmanager
def outputs_through(model: Model, edits: Mapping[int, Callable[[torch.Tensor], torch.Tensor | None]]) -> Iterator[None]:
    """Inside, z_BTHK of each given layer goes through its function; None from it leaves z as it is."""

    def hook(edit: Callable[[torch.Tensor], torch.Tensor | None]):
        def before(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            z_BTHK = args[0].unflatten(-1, (model.n_heads, model.d_head))
            found = edit(z_BTHK)
            return None if found is None else (found.flatten(-2), *args[1:])

        return before

    with ExitStack() as stack:
        for layer, edit in edits.items():
            handle = model.layers[layer].output.register_forward_pre_hook(hook(edit))
            stack.callback(handle.remove)
        yield


@contextmanager
def streams_kept(model: Model, layers: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, the stream that enters each of these layers is kept, BTD by layer, for `begun_at`."""
    streams: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for layer in set(layers):

            def keep(module: torch.nn.Module, args: tuple[torch.Tensor, ...], layer: int = layer) -> None:
                streams[layer] = args[0]

            stack.callback(model.layers[layer].block.register_forward_pre_hook(keep).remove)
        yield streams


@contextmanager
def begun_at(model: Model, layer: int, stream_BTD: torch.Tensor) -> Iterator[None]:
    """Inside, `hidden` takes the stream entering `layer` as given, and the layers before it are skipped."""

    def skip(stream: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return stream

    def enter(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (stream_BTD, *args[1:])

    blocks = [at.block for at in model.layers]
    handle = blocks[layer].register_forward_pre_hook(enter)
    try:
        for block in blocks[:layer]:
            block.forward = skip  # the instance's own
        yield
    finally:
        handle.remove()
        for block in blocks[:layer]:
            block.__dict__.pop("forward", None)


@contextmanager
def patterns_forced(model: Model, attn: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Inside, the given layers attend as attn_BHTT says: replacing then acts along the value path alone [Olsson].

    `patterns` gives those of a clean run.
    """
    try:
        for layer, attn_BHTT in attn.items():
            model.layers[layer].attention.sih_pattern = attn_BHTT
        yield
    finally:
        for layer in attn:
            del model.layers[layer].attention.sih_pattern


def patterns(model: Model, ids_BT: torch.Tensor) -> dict[int, torch.Tensor]:
    """Every layer's attention, BHTT by layer."""
    found: dict[int, torch.Tensor] = {}
    model.hidden(ids_BT, lambda layer, attn_BHTT, out_BTHK: found.update({layer: attn_BHTT}))
    return found


def outputs(model: Model, ids_BT: torch.Tensor) -> dict[int, torch.Tensor]:
    """What every head puts out, BTHK by layer."""
    found: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[[torch.Tensor], None]:
        return lambda z_BTHK: found.update({layer: z_BTHK})

    with outputs_through(model, {layer: keep(layer) for layer in range(model.n_layers)}):
        model.hidden(ids_BT)
    return found


def mean_outputs(model: Model, ids_BT: torch.Tensor, batch_tokens: int) -> torch.Tensor:
    """The mean of every head's output over texts and positions from 1 on, LHK, float32; the texts are not padded.

    The reference of mean ablation: natural texts that no effect is measured on, at the same checkpoint.
    """
    total_LHK = torch.zeros(model.n_layers, model.n_heads, model.d_head, dtype=torch.float64)

    def add(layer: int) -> Callable[[torch.Tensor], None]:
        def added(z_BTHK: torch.Tensor) -> None:
            total_LHK[layer] += z_BTHK[:, 1:].float().sum((0, 1)).cpu().double()

        return added

    with outputs_through(model, {layer: add(layer) for layer in range(model.n_layers)}):
        for chunk_BT in ids_BT.split(max(1, batch_tokens // ids_BT.shape[1])):
            model.hidden(chunk_BT)
    return (total_LHK / (len(ids_BT) * (ids_BT.shape[1] - 1))).float().to(model.device)


@torch.inference_mode()
def at_the_end(
    model: Model, ids_BT: torch.Tensor, heads: Sequence[Head], instead: Instead, at_once: int = 512, following: int = 0
) -> torch.Tensor:
    """Final hidden states with each head alone replaced near the end, (heads + 1, B, 1 + following, D); first none is.

    Heads are replaced at the last position but `following`, and states are those from there on. Texts are not padded.
    Replacing there leaves every earlier key and value as it was, so each text is run once: its last tokens stand there
    once for each head, and every copy sees the tokens before it and itself. Only where a layer may look back less far
    than a text is long does each head take a pass of its own.
    `instead` gives (H, K) by layer, the same for all texts, or (B, H, K). `at_once`: copies in a pass.
    """
    width = 1 + following
    before = ids_BT.shape[1] - width
    wanted: list[Head | None] = [None, *heads]
    if before + following >= model.window:
        at_B = torch.full((len(ids_BT),), before)
        everywhere = {layer: instead[layer] for layer in range(model.n_layers)}
        everywhere = {n: z[:, None] if z.dim() == 3 else z for n, z in everywhere.items()}
        found = []
        for head in wanted:
            with replaced(model, [] if head is None else [head], everywhere, at_B):
                found.append(model.hidden(ids_BT)[:, before:])
        return torch.stack(found)
    found = []
    for begin in range(0, len(wanted), at_once):
        part = wanted[begin : begin + at_once]
        copies = len(part)
        ids = torch.cat([ids_BT[:, :before], ids_BT[:, before:].repeat(1, copies)], dim=1)
        seen_TT = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        copy_T = torch.arange(copies).repeat_interleave(width)
        seen_TT[before:, before:] &= copy_T[:, None] == copy_T
        position_T = torch.cat([torch.arange(before), before + torch.arange(width).repeat(copies)])
        of_layer: dict[int, list[tuple[int, int]]] = {}
        for copy, head in enumerate(part):
            if head is not None:
                of_layer.setdefault(head[0], []).append((before + copy * width, head[1]))

        def edit(layer: int, places: list[tuple[int, int]]) -> Callable[[torch.Tensor], torch.Tensor]:
            def edited(z_BTHK: torch.Tensor) -> torch.Tensor:
                z_BTHK = z_BTHK.clone()
                at, head = (torch.tensor(x, device=z_BTHK.device) for x in zip(*places, strict=True))
                z_BTHK[:, at, head] = instead[layer].to(z_BTHK)[..., head, :]
                return z_BTHK

            return edited

        with outputs_through(model, {layer: edit(layer, places) for layer, places in of_layer.items()}):
            hidden_BTD = model.hidden(ids, seen_TT=seen_TT, position_T=position_T)
        found.append(hidden_BTD[:, before:].unflatten(1, (copies, width)).transpose(0, 1))
    return torch.cat(found)
