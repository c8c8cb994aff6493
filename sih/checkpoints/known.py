"""What has been read of a Hub repository, kept in a file, so that an audit asks for what is new only."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sih.checkpoints import aside
from sih.checkpoints.audit import HubFile
from sih.errors import SihError


@dataclass
class Known:
    """What has been read of a repository: the commit of each branch and tag, and the files of each commit.

    `refused` says why the files of some commits could not be read this time.
    """

    commits: dict[str, str]
    files: dict[str, tuple[HubFile, ...]]
    refused: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def read(file: Path) -> "Known":
        """What the file holds; nothing where there is none."""
        try:
            kept = json.loads(file.read_text())
        except FileNotFoundError:
            return Known({}, {})
        files = {commit: tuple(HubFile(**f) for f in found) for commit, found in kept["files"].items()}
        return Known({_named(ref): commit for ref, commit in kept["commits"]}, files)

    def write(self, file: Path) -> None:
        """Keep what belongs to the named commits. Raises SihError when it cannot be written."""
        named = set(self.commits.values())
        text = json.dumps(
            {
                "commits": list(self.commits.items()),
                "files": {c: [asdict(f) for f in files] for c, files in self.files.items() if c in named},
            }
        )
        unfinished = file.with_name(f"{aside.prefix()}{file.name}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(text)
            os.replace(unfinished, file)
        except OSError as error:
            raise SihError(f"{file} cannot be written ({error.strerror}); free room or set SIH_CACHE") from None
        finally:
            unfinished.unlink(missing_ok=True)


def _named(ref: str | int | None) -> str:
    """A branch or tag by its name. Earlier versions kept the step of step{N} in its place, and nothing for main."""
    return ref if isinstance(ref, str) else "main" if ref is None else f"step{ref}"
