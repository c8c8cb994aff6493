"""Files on this disk: which hold weights or a tokenizer, and the sha256 that names their contents."""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sih.errors import CheckpointError

# In the order in which transformers looks for them.
WEIGHT_NAMES = (r"model\.safetensors", r"model-.*\.safetensors", r"pytorch_model\.bin", r"pytorch_model-.*\.bin")

TOKENIZER_NAMES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # the first that is there in full


def weight_names(names: Iterable[str]) -> list[str]:
    """The names of the files that hold a checkpoint's weights: safetensors if there are any, else .bin.

    Whole files come before sharded ones, as in transformers; empty when there are none.
    """
    present = sorted(names)
    for pattern in WEIGHT_NAMES:
        if found := [name for name in present if re.fullmatch(pattern, name)]:
            return found
    return []


def tokenizer_files(folder: Path) -> list[Path]:
    """tokenizer.json, or else vocab.json and merges.txt: beside the weights, or one folder up.

    Raises:
        CheckpointError: there is none.
    """
    for place in (folder, folder.parent):
        for names in TOKENIZER_NAMES:
            if all((place / name).is_file() for name in names):
                return [place / name for name in names]
    raise CheckpointError(
        f"{folder}: no tokenizer.json there or one folder up, nor vocab.json and merges.txt; "
        "copy the model's tokenizer into one of them"
    )


def file_state(file: Path) -> list[int]:
    """Size in bytes and mtime in ns: enough to tell that a file is untouched without reading it."""
    return [file.stat().st_size, file.stat().st_mtime_ns]


def sha256_of(file: Path) -> str:
    """sha256 of a file's contents, hexadecimal."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@dataclass
class Sha256:
    """sha256 of files, each read once: a file whose size and mtime are unchanged is not read again."""

    known: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def of(self, file: Path) -> str:
        size, mtime_ns = file_state(file)
        key = (str(file.resolve()), size, mtime_ns)
        if key not in self.known:
            self.known[key] = sha256_of(file)
        return self.known[key]

    def of_all(self, files: Iterable[Path]) -> str:
        """One text that names the contents of all files: their sha256, in order."""
        return " ".join(self.of(file) for file in files)


def cache_folder() -> Path:
    """Where sih keeps what it fetched or trained: `SIH_CACHE`, or the user's cache folder."""
    if chosen := os.environ.get("SIH_CACHE"):
        return Path(chosen).expanduser()
    import pooch  # takes a third of a second, so only where it is needed

    return Path(pooch.os_cache("sih"))
