"""Where weights come from: a folder, the Hub, or the embedded series.

Every source answers the same questions: which steps it offers, which of them cannot be trusted, and which
folder holds one step's files.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sih.errors import CheckpointError

# waiting(step, bytes there, bytes in all): called while waiting for a checkpoint.
Waiting = Callable[[int, int, int], None]
# needless(step): whether the checkpoint is no longer needed.
Needless = Callable[[int], bool]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint's files on this disk. `commit_sha` and `repo` are None where they come from no repository."""

    step: int
    folder: Path
    revision: str
    commit_sha: str | None = None
    repo: str | None = None


class Source(Protocol):
    """`steps` in increasing order; `suspect` gives the reason for each step whose label the hashes contradict.

    `tokenizer` is a hash of the series' tokenizer file: its sha256, or git's own hash where the Hub knows no other;
    empty where there is no such file.
    """

    steps: list[int]
    suspect: dict[int, str]

    @property
    def tokenizer(self) -> str: ...

    def stream(
        self, steps: list[int], waiting: Waiting, needless: Needless | None = None
    ) -> Generator[tuple[int, Checkpoint | CheckpointError | None]]:
        """Each step with its checkpoint, or with the error that prevents it; None when it is no longer needed.

        A checkpoint's files are there until the next step is asked for. Close the iterator when leaving early.

        Args:
            needless: asked about each step just before it would be fetched.

        Raises:
            SihError: an error that every other step would meet too.
        """

    def changed(self, step: int, weights_sha256: dict[str, str], weights_files: dict[str, list[int]]) -> str | None:
        """How the weights of `step` now differ from those with these sha256s; None when they do not.

        Args:
            weights_files: size in bytes and mtime in ns of each weight file then, if it was on this disk.
        """
