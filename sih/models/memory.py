"""The device that a model is measured on, and how much fits into its memory."""

import os
from pathlib import Path

import torch

from sih.errors import SihError, first_line
from sih.models.loading import shape_of

FEWEST_TOKENS = 256
MOST_TOKENS = {"cpu": 8192, "cuda": 65536, "mps": 8192}  # larger passes than these are no faster


def tokens_in_a_pass(folder: Path, device: torch.device) -> int:
    """How many tokens a forward pass may hold, given the device's total memory and the model's shape.

    A pass may take a quarter of the memory. At its largest, it holds for each token about 16 hidden states and, when
    attention is observed, one more for each layer (the heads' outputs, which are read after the pass) and 6 numbers for
    each head and earlier position, in texts of 512 tokens. Total memory counts,
    not free memory, so that one machine always uses the same batches. Raises CheckpointError without a readable
    config.

    """
    shape = shape_of(folder)
    bytes_per_token = 4 * ((16 + shape.layers) * shape.width + 6 * shape.heads * 512)
    fitting = _memory(device) // 4 // bytes_per_token
    return int(min(max(fitting, FEWEST_TOKENS), MOST_TOKENS[device.type]))


def _memory(device: torch.device) -> int:
    """The device's total memory, bytes."""

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else the CPU. Raises SihError for a device that is not there.

    Products of float32 are whole float32 there: TF32, which keeps ten bits of a GPU's factors, is off.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SihError(f"device={name}: {first_line(error)}; expected auto, cpu, cuda, cuda:N or mps") from None
    torch.set_float32_matmul_precision("highest")
    return device
