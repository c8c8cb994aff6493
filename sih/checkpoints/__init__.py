"""Where weights come from: a folder, the Hub, or the embedded series.

Every source answers the same questions: which steps it offers, which of them are not to be trusted, and which
folder holds one step's files.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
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
    """`steps` in increasing order; `suspect` gives the reason for each step whose label the hashes contradict.

    `tokenizer` names the contents of the series' tokenizer file: its sha256, or git's own hash where the Hub knows
    no other; empty where there is none.
    """

    steps: list[int]
    suspect: dict[int, str]

    @property
    def tokenizer(self) -> str: ...

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
