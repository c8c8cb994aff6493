"""A folder of checkpoint folders, of any naming."""

from collections.abc import Generator
from functools import cached_property
from pathlib import Path

from sih.checkpoints import Checkpoint, Needless, Waiting
from sih.checkpoints.files import Sha256, file_state, tokenizer_files, weight_names
from sih.checkpoints.naming import Naming
from sih.checkpoints.whole import unfinished, unsettled
from sih.errors import CheckpointError, SihError

REMOVED = "its files were removed before it was measured"


class LocalFolder:
    """The folders in `folder` that `naming` gives a step, each with config.json, weights and, there or in `folder`,
    a tokenizer.

    Args:
        settled_only: leave out what a running training may still be writing, and say why in `unsettled`, by step;
            there may be no checkpoint yet.

    Raises:
        SihError: no such folder, or two of one step.
    """

    def __init__(self, folder: Path, hashes: Sha256, naming: Naming, settled_only: bool = False) -> None:
        self.folder, self.hashes = folder, hashes
        self.folders = found_in(folder, naming)
        reasons = {step: unsettled(found) for step, found in self.folders.items()} if settled_only else {}
        self.unsettled = {step: reason for step, reason in reasons.items() if reason}
        self.folders = {step: found for step, found in self.folders.items() if step not in self.unsettled}
        self.steps = list(self.folders)
        self.suspect: dict[int, str] = {}  # nothing is known of a folder before its weights are read
        if not self.steps and not settled_only:
            there = [entry.name for entry in folder.iterdir() if entry.is_dir()]
            raise SihError(f"{folder}: no checkpoint folders; {naming.none_of(there, 'folders')}")

    @cached_property
    def tokenizer(self) -> str:
        try:
            return self.hashes.of_all(tokenizer_files(self.folders[self.steps[0]]))
        except (CheckpointError, FileNotFoundError):  # reported for each checkpoint that is measured
            return ""

    def stream(
        self, steps: list[int], waiting: Waiting, needless: Needless | None = None
    ) -> Generator[tuple[int, Checkpoint | CheckpointError | None]]:
        for step in steps:
            known = needless is not None and needless(step)
            yield step, None if known else self._checkpoint(step)

    def _checkpoint(self, step: int) -> Checkpoint | CheckpointError:
        folder = self.folders[step]
        try:
            reason = unfinished(folder)
        except FileNotFoundError:
            return CheckpointError(REMOVED)
        if reason:
            return CheckpointError(f"{folder} is half-written: {reason}; try again when it is complete, or watch=true")
        return Checkpoint(step, folder, folder.name)

    def changed(self, step: int, weights_sha256: dict[str, str], weights_files: dict[str, list[int]]) -> str | None:
        folder = self.folders[step]
        files = {name: folder / name for name in weight_names(f.name for f in folder.iterdir())}
        untouched = {name: file_state(f) for name, f in files.items()} == weights_files
        if untouched or {name: self.hashes.of(f) for name, f in files.items()} == weights_sha256:
            return None
        return "the weights there now have another sha256"


def found_in(folder: Path, naming: Naming) -> dict[int, Path]:
    """The checkpoint folders by step, in increasing order. Raises SihError for two of one step."""
    names = {entry.name: entry.resolve() for entry in folder.iterdir() if entry.is_dir()}
    return {step: folder / name for step, name in naming.by_step(names, str(folder)).items()}
