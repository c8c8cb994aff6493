"""A cell's manifest: the weights it was measured on, and with what, where and when."""

import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sih import CONF
from sih.checkpoints import Checkpoint
from sih.checkpoints.files import file_state
from sih.checkpoints.schedule import tokens_of
from sih.config import model_name
from sih.models.loading import weight_files
from sih.models.model import Model
from sih.results.cells import Cells
from sih.running.survey import Work

VERSIONS = ("sih", "torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow")


def manifest_of(
    work: Work,
    checkpoint: Checkpoint,
    model: Model,
    device: torch.device,
    tokenizer_sha256: str,
    layout_error: float,
) -> Callable[[str, Cells, int | None, dict[str, float]], dict[str, Any]]:
    """A function that completes what a step's cells share with a score's name, cells, batch_tokens and seconds."""
    config, files = work.config, weight_files(checkpoint.folder)
    common = {
        "model": model_name(config.model),
        "step": checkpoint.step,
        "tokens": tokens_of(checkpoint.step, config.model.tokens_per_step),
        "revision": checkpoint.revision,
        "commit_sha": checkpoint.commit_sha,
        "weights_sha256": {f.name: work.hashes.of(f) for f in files},
        "tokenizer_sha256": tokenizer_sha256,
        "weights_files": {f.name: file_state(f) for f in files},
        "suspect": work.source.suspect.get(checkpoint.step),
        "shape": {
            "layers": model.n_layers,
            "heads": model.n_heads,
            "parameters": sum(p.numel() for p in model.module.parameters()),
        },
        "architecture": type(model.module).__name__,
        "ov_circuit": model.circuit,
        "layout_error": layout_error,  # the largest of the series' self-check, relative
        "dtype": config.dtype,
        "matmul_precision": torch.get_float32_matmul_precision(),  # highest: no TF32
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "seed": config.seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "git_commit": git_commit(CONF.parent),
        "host": platform.node(),
    }

    def of_score(name: str, cells: Cells, batch_tokens: int | None, seconds: dict[str, float]) -> dict[str, Any]:
        return {
            "score": name,
            "version": work.scores[name].version,
            "key": cells.root.name,
            **common,
            "texts_sha256": work.settings[name]["texts_sha256"],
            "batch_tokens": batch_tokens,
            "measured_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": seconds,
        }

    return of_score


@cache
def git_commit(checkout: Path) -> str | None:
    """The commit of the checkout that sih runs from, with -dirty if changed; None when there is no checkout."""
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
