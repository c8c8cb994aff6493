"""Where weights come from: a folder, the Hub, or the embedded series.

Every source answers the same two questions: which steps it offers, and which folder holds one step's files.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint's files on this disk. `commit_sha` is None where there is no git revision."""

    step: int
    folder: Path
    revision: str
    commit_sha: str | None = None


class Source(Protocol):
    """`steps` in increasing order. `open(step)` raises SihError when the files cannot be had."""

    steps: list[int]

    def open(self, step: int) -> Checkpoint: ...


@dataclass
class Sha256:
    """sha256 of files, read once each: a file whose size and mtime are unchanged is not read again."""

    known: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def of(self, file: Path) -> str:
        state = file.stat()
        key = (str(file.resolve()), state.st_size, state.st_mtime_ns)
        if key not in self.known:
            with open(file, "rb") as handle:
                self.known[key] = hashlib.file_digest(handle, "sha256").hexdigest()
        return self.known[key]
