"""Weights as they lie in their files: which types they have, and all tensors of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open


def tensors_of(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's weight files, in its stored type.

    Raises:
        pickle.UnpicklingError: a .bin file holds more than plain tensors.
        SafetensorError, OSError, RuntimeError: a file cannot be read.
    """
    found: dict[str, torch.Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
        else:
            found |= torch.load(file, map_location="cpu", weights_only=True)
    return found


def stored_types(files: Sequence[Path]) -> list[str]:
    """The types of the floating-point weights on disk, such as ["float16"]; more than one where they are mixed.

    No tensor is read: only the headers of safetensors, and the index of a .bin file.
    """
    found: set[torch.dtype] = set()
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                slices = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118  no mapping
                found |= {_SAFETENSORS[s.get_dtype()] for s in slices if s.get_dtype() in _SAFETENSORS}
        else:
            tensors = torch.load(file, map_location="meta", weights_only=True)
            found |= {t.dtype for t in tensors.values() if t.is_floating_point()}
    return sorted(str(dtype).removeprefix("torch.") for dtype in found)


_SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
