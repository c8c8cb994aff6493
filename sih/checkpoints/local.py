"""Any folder of step{N}/ checkpoints."""

from pathlib import Path

from sih.checkpoints import Checkpoint
from sih.checkpoints.schedule import revision, step_of
from sih.errors import SihError


class LocalFolder:
    """`folder/step{N}/`, each with config.json, weights and, there or in `folder`, a tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = ((step_of(entry.name), entry) for entry in folder.iterdir() if entry.is_dir())
        self.steps = sorted(step for step, _ in found if step is not None)
        if not self.steps:
            raise SihError(f"{folder}: no checkpoint folders; expected step{{N}}/ folders, such as {folder}/step512/")

    def open(self, step: int) -> Checkpoint:
        return Checkpoint(step, self.folder / revision(step), revision(step))
