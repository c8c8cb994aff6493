"""Any folder of step{N}/ checkpoints."""

from collections.abc import Generator
from pathlib import Path

from sih.checkpoints import Checkpoint, Needless, Waiting
from sih.checkpoints.files import Sha256, file_state, tokenizer_files, weight_names
from sih.checkpoints.schedule import revision, step_of
from sih.errors import CheckpointError, SihError


class LocalFolder:
    """`folder/step{N}/`, each with config.json, weights and, there or in `folder`, a tokenizer."""

    def __init__(self, folder: Path, hashes: Sha256) -> None:
        self.folder, self.hashes = folder, hashes
        found = ((step_of(entry.name), entry) for entry in folder.iterdir() if entry.is_dir())
        self.steps = sorted(step for step, _ in found if step is not None)
        self.suspect: dict[int, str] = {}  # nothing is known of a folder before its weights are read
        if not self.steps:
            raise SihError(f"{folder}: no checkpoint folders; expected step{{N}}/ folders, such as {folder}/step512/")

    @property
    def tokenizer(self) -> str:
        try:
            return self.hashes.of_all(tokenizer_files(self.folder / revision(self.steps[0])))
        except CheckpointError:  # reported for each checkpoint that is measured
            return ""

    def stream(
        self, steps: list[int], waiting: Waiting, needless: Needless | None = None
    ) -> Generator[tuple[int, Checkpoint | CheckpointError | None]]:
        for step in steps:
            known = needless is not None and needless(step)
            yield step, None if known else Checkpoint(step, self.folder / revision(step), revision(step))

    def changed(self, step: int, weights_sha256: dict[str, str], weights_files: dict[str, list[int]]) -> str | None:
        folder = self.folder / revision(step)
        files = {name: folder / name for name in weight_names(f.name for f in folder.iterdir())}
        untouched = {name: file_state(f) for name, f in files.items()} == weights_files
        if untouched or {name: self.hashes.of(f) for name, f in files.items()} == weights_sha256:
            return None
        return "the weights there now have another sha256"
