"""Which of the layouts a model has: one file for each way in which weights lie."""

from transformers import PreTrainedModel

from sih.errors import SihError
from sih.models import gpt2, gpt_neox, split
from sih.models.layer import Layer

LAYOUTS = (gpt_neox, gpt2, split)


def layers_of(module: PreTrainedModel) -> list[Layer]:
    """Every layer's attention, in order. What a layout says of a class is checked by `selfcheck`.

    Raises:
        SihError: not one known layout for each layer, or layers of different numbers of heads.
    """
    name, n_layers = type(module).__name__, module.config.get_text_config().num_hidden_layers
    found = []
    for path, part in module.named_modules():
        block = module.get_submodule(path.rpartition(".")[0])
        try:
            found += [layer for layout in LAYOUTS if (layer := layout.layer(block, part)) is not None]
        except SihError as error:
            raise SihError(f"{name}: {path}: {error}; expected a layout of {_known()}") from None
    if len(found) != n_layers:
        raise SihError(f"{name}: {len(found)} of {n_layers} layers have attention as one of {_known()} keeps it")
    shapes = {(layer.n_heads, layer.d_head) for layer in found}
    if len(shapes) > 1 or any(layer.n_heads % len(layer.v_GKD) for layer in found):
        raise SihError(f"{name}: heads differ from layer to layer, or do not divide into groups: {sorted(shapes)}")
    return found


def _known() -> str:
    return ", ".join(layout.__name__.rpartition(".")[2] for layout in LAYOUTS)
