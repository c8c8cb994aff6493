"""publication.json: which W&B run is the newest publication, and what it shows. Imports no W&B."""

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sih.config import TrackerConfig
from sih.results.run import Run
from sih.tracker.access import host

INCOMPLETE, CURRENT, SUPERSEDED, LIVE = "incomplete", "current", "superseded", "live"
_RECORD = "publication.json"


@dataclass
class Record:
    """publication.json.

    run, folder, url: the newest publication.
    contents: digest of what it shows, None while it is under way.
    destination: where it went.
    to_supersede: paths of online W&B runs that were replaced but are not tagged as superseded yet.
    """

    run: str | None = None
    folder: str | None = None
    url: str | None = None
    path: str | None = None
    contents: str | None = None
    destination: str | None = None
    to_supersede: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, run: Run) -> "Record":
        file = run.root / _RECORD
        if not file.exists():
            return cls()
        found = json.loads(file.read_text())
        return cls(**{k: v for k, v in found.items() if k in cls.__dataclass_fields__})

    def write(self, run: Run) -> None:
        run.write_text(_RECORD, json.dumps(asdict(self), indent=2) + "\n")


def is_current(run: Run, options: TrackerConfig, contents: str) -> bool:
    """Whether the newest publication shows these contents, and is still there."""
    record = Record.read(run)
    return (record.contents, record.destination) == (contents, destination(options)) and _still_there(record, run)


def destination(options: TrackerConfig) -> str:
    """Where publications go, in words."""
    online = options.mode == "online"
    return f"{host()} {options.entity} {options.project}" if online else f"offline {options.project}"


def published_already(run: Run) -> list[str]:
    """The message for when the newest publication already shows the same."""
    return ["Published already, and nothing has changed since.", *where_it_is(run)]


def where_it_is(run: Run) -> list[str]:
    """How to look at the newest publication, in words."""
    return _how_to_look(Record.read(run), run)


def _still_there(record: Record, run: Run) -> bool:
    return bool(record.url) or (run.root / "wandb" / str(record.folder)).is_dir()


def _how_to_look(record: Record, run: Run) -> list[str]:
    if record.url:
        return [f"Dashboard:  {record.url}"]
    beside = Path(sys.executable).parent / "wandb"  # in a virtual environment that is not active
    command = "wandb" if shutil.which("wandb") or not beside.exists() else os.path.relpath(beside)
    here = os.path.relpath(run.root / "wandb" / str(record.folder))
    return [
        "Dashboard, in the terminal without an account, or on wandb.ai:",
        f"  {command} leet run {here}",
        f"  {command} sync {here}",
    ]
