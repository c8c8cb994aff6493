"""Where weights come from: a folder, the Hub, or the embedded series.

Every source answers the same questions: which steps it offers, which of them are not to be trusted, and which
folder holds one step's files.
"""

import hashlib
import re
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sih.errors import CheckpointError

# waiting(step, bytes there, bytes in all): called while a checkpoint is waited for.
Waiting = Callable[[int, int, int], None]
# needless(step): whether nobody would use the checkpoint any more.
Needless = Callable[[int], bool]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint's files on this disk. `commit_sha` is None where there is no git revision."""

    step: int
    folder: Path
    revision: str
    commit_sha: str | None = None


class Source(Protocol):
    """`steps` in increasing order; `suspect` gives the reason for each step whose label the hashes contradict."""

    steps: list[int]
    suspect: dict[int, str]

    def stream(
        self, steps: list[int], waiting: Waiting, needless: Needless | None = None
    ) -> Generator[tuple[int, Checkpoint | CheckpointError | None]]:
        """Each step with its checkpoint, or with why it cannot be had; None for one that is needless by now.

        A checkpoint's files are there until the next step is asked for. Close the iterator when leaving early.

        Args:
            needless: asked of each step just before it would be fetched.

        Raises:
            SihError: what no other step would survive either.
        """

    def changed(self, step: int, weights_sha256: dict[str, str], weights_files: dict[str, list[int]]) -> str | None:
        """How the weights of `step` differ now from those with these sha256s; None when they do not.

        Args:
            weights_files: size and mtime in ns of each weight file then, where they lay on this disk.
        """


# In the order in which transformers looks for them.
WEIGHT_NAMES = (r"model\.safetensors", r"model-.*\.safetensors", r"pytorch_model\.bin", r"pytorch_model-.*\.bin")


def weight_names(names: Iterable[str]) -> list[str]:
    """Of a checkpoint's file names those that hold weights: safetensors where there are any, else .bin.

    Whole before sharded, as transformers reads them; empty when there are none.
    """
    present = sorted(names)
    for pattern in WEIGHT_NAMES:
        if found := [name for name in present if re.fullmatch(pattern, name)]:
            return found
    return []


def file_state(file: Path) -> list[int]:
    """Size in bytes and mtime in ns: what tells that a file is untouched without reading it."""
    return [file.stat().st_size, file.stat().st_mtime_ns]


@dataclass
class Sha256:
    """sha256 of files, read once each: a file whose size and mtime are unchanged is not read again."""

    known: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def of(self, file: Path) -> str:
        size, mtime_ns = file_state(file)
        key = (str(file.resolve()), size, mtime_ns)
        if key not in self.known:
            with open(file, "rb") as handle:
                self.known[key] = hashlib.file_digest(handle, "sha256").hexdigest()
        return self.known[key]
