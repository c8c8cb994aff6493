"""The embedded series: a small GPT-NeoX that sih trains itself, once, on the generated language.

It is kept in the cache folder as ordinary step{N}/ folders. The same recipe on the same machine gives the
same bytes.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from sih.checkpoints import aside, corpus
from sih.checkpoints.files import Sha256
from sih.checkpoints.local import LocalFolder
from sih.checkpoints.naming import OWN
from sih.config import TrainConfig
from sih.errors import SihError

# Training reports each step's loss as progress(step, steps, loss).
Progress = Callable[[int, int, float], None]
TRAINER = Path(__file__).with_name("training.py")


def recipe(train: TrainConfig, seed: int) -> dict:
    """Everything that the trained bytes depend on, except the machine."""
    return {
        "train": asdict(train),
        "seed": seed,
        "corpus": hashlib.sha256(Path(corpus.__file__).read_bytes()).hexdigest(),
        "trainer": hashlib.sha256(TRAINER.read_bytes()).hexdigest(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def digest(recipe: dict) -> str:
    """12 hex digits that name a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


class TinySeries(LocalFolder):
    """The series of one recipe; trained when it is not in `cache` yet."""

    def __init__(self, train: TrainConfig, seed: int, cache: Path, progress: Progress, hashes: Sha256) -> None:
        written = recipe(train, seed)
        folder = cache / "tiny" / digest(written)
        if not folder.is_dir():
            _train_aside(folder, train, seed, written, progress)
        super().__init__(folder, hashes, OWN)


def _train_aside(folder: Path, train: TrainConfig, seed: int, written: dict, progress: Progress) -> None:
    """Train into another folder, then rename it; if two processes train at once, the first one's series is kept."""
    from sih.checkpoints.training import train_into  # torch and transformers take seconds

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.clear_dead(folder.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=aside.prefix(), dir=folder.parent))
    except OSError as error:
        raise SihError(f"the cache folder {folder.parent} cannot be written ({error}); set SIH_CACHE") from None
    try:
        train_into(unfinished, train, seed, progress)
        (unfinished / "recipe.json").write_text(json.dumps(written, indent=2) + "\n")
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # else another process has finished the same series
                raise
    except OSError as error:
        raise SihError(
            f"the embedded series cannot be written to {folder} ({error}); free room or set SIH_CACHE"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


_BLOCK = 1024  # held-out documents are drawn in blocks, so that the first n are the same however many are asked for


def held_out(train: TrainConfig, seed: int, count: int) -> list[corpus.Document]:
    """The first `count` documents that training never draws from, of the same kinds and length."""
    found: list[corpus.Document] = []
    while len(found) < count:
        block = len(found) // _BLOCK
        stream = "held-out" if block == 0 else f"held-out {block}"
        found += corpus.documents(seed, stream, _BLOCK, train.context, train.few_shot_lists, train.recitals)
    return found[:count]
