"""Publications: one fresh W&B run each.

W&B cannot rewrite a run's history, so a run that is added to shows old and new values together. Workers therefore
never log; a publication reads the whole store, and `current` is the tag of the newest one. It gets the tag last, so a
publication that was cut off never has it. `publication.json` in the store names the newest run.
"""

import json
import netrc
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
import wandb

from sih.config import Config, TrackerConfig, model_name
from sih.errors import SihError
from sih.store import Store
from sih.tracker.contents import digest_of, fill, provenance
from sih.trajectories import Trajectories

INCOMPLETE, CURRENT, SUPERSEDED, LIVE = "incomplete", "current", "superseded", "live"
_RECORD = "publication.json"


@dataclass
class Record:
    """publication.json.

    run, folder, url: the newest publication. contents: digest of what it shows, None while it is under way.
    destination: where it went. to_supersede: paths of online runs that another one replaced and that do not say so yet.
    """

    run: str | None = None
    folder: str | None = None
    url: str | None = None
    path: str | None = None
    contents: str | None = None
    destination: str | None = None
    to_supersede: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, store: Store) -> "Record":
        file = store.root / _RECORD
        if not file.exists():
            return cls()
        found = json.loads(file.read_text())
        return cls(**{k: v for k, v in found.items() if k in cls.__dataclass_fields__})

    def write(self, store: Store) -> None:
        store.write_text(_RECORD, json.dumps(asdict(self), indent=2) + "\n")


def check(config: TrackerConfig) -> None:
    """Refuse `mode=online` without a key, a network or W&B's consent before anything is measured. Raises SihError."""
    if config.mode != "online":
        return
    if not _has_key():
        raise SihError(
            "tracker.mode=online needs a W&B key: run `wandb login` or set WANDB_API_KEY; "
            "or leave it offline and `wandb sync` later"
        )
    try:
        api(config)  # which shows the key to the server
    except wandb.errors.Error as error:
        raise SihError(
            f"tracker.mode=online: {_host()} could not be reached or refused the key ({first_line(error)}). "
            "Nothing was measured; check the network and `wandb login`, or leave it offline and `wandb sync` later"
        ) from None


def api(config: TrackerConfig) -> wandb.Api:
    """W&B's public client, without its chatter. Raises wandb.errors.Error when the server refuses the key."""
    wandb.setup(wandb.Settings(silent=True))
    return wandb.Api(timeout=config.init_timeout)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_host().split("://")[-1].split("/")[0]) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _host() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def publish(config: Config, trajectories: Trajectories, emergence: dict[str, Any], figures: list[Path]) -> list[str]:
    """Publish the store as one fresh run, unless the newest one shows the same; returns what to tell the user.

    Nothing is measured or changed. Of two at once the second waits, and finds it done. `force` publishes anyway.

    Raises:
        SihError: W&B refused, could not be reached, or did not get everything; the store is as it was.
    """
    if config.tracker.mode == "disabled":
        return []
    store = trajectories.store
    try:
        with filelock.FileLock(store.root / ".publishing.lock"):
            return _publish(config, trajectories, emergence, figures)
    except (wandb.errors.Error, TimeoutError) as error:
        raise SihError(
            f"W&B could not be reached or refused ({first_line(error)}); every result is in {store.root}. "
            "Publish with python -m sih.publish and the same options"
        ) from None


def _publish(config: Config, trajectories: Trajectories, emergence: dict[str, Any], figures: list[Path]) -> list[str]:
    tracker, store = config.tracker, trajectories.store
    online = tracker.mode == "online"
    record, contents = Record.read(store), digest_of(store)
    destination = f"{_host()} {tracker.entity} {tracker.project}" if online else f"offline {tracker.project}"
    same = (record.contents, record.destination) == (contents, destination) and _still_there(record, store)
    if same and not config.force:
        return ["Published already, and nothing has changed since.", *_how_to_look(record, store)]
    run = open_run(config, store, "publication", INCOMPLETE if online else CURRENT, {"provenance": provenance(store)})
    try:
        artifact = fill(run, trajectories, emergence, figures)
        if online:
            _wait(artifact, tracker)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    new = Record(
        run=run.id,
        folder=Path(run.dir).parent.name,
        url=run.url if online else None,
        path=f"{run.entity}/{run.project}/{run.id}" if online else None,
        contents=contents,
        destination=destination,
        to_supersede=[p for p in (record.path, *record.to_supersede) if p],
    )
    if online:
        record.to_supersede.append(str(new.path))  # should this process be killed right before it is recorded
        record.write(store)
        _confirm(new, emergence["answer"], tracker)
    new.write(store)
    _set_aside(store, new)
    if online:
        _supersede(new, store, tracker)
    return _how_to_look(new, store)


def open_run(
    config: Config, store: Store, job_type: str, tag: str, more: dict[str, Any], run_id: str | None = None
) -> wandb.Run:
    """A fresh run of the store's model, offline or online as configured. Raises wandb.errors.Error."""
    tracker, name = config.tracker, model_name(config.model)
    return wandb.init(
        id=run_id,
        project=tracker.project,
        entity=tracker.entity,
        dir=store.root,
        mode="online" if tracker.mode == "online" else "offline",
        group=name,
        job_type=job_type,
        name=f"{name} {store.root.name}",
        tags=[tag],
        config={**store.config, **more},
        settings=wandb.Settings(
            init_timeout=tracker.init_timeout,
            finish_timeout=tracker.finish_timeout,
            finish_timeout_raises=True,
            silent=True,
            console="off",
            disable_git=True,
        ),
    )


def _wait(artifact: wandb.Artifact, tracker: TrackerConfig) -> None:
    """Until the artifact is there whole. Raises wandb.errors.Error."""
    try:
        artifact.wait(timeout=tracker.finish_timeout)
    except ValueError as error:
        raise wandb.errors.CommError(str(error)) from None


def _confirm(record: Record, answer: str, tracker: TrackerConfig) -> None:
    """Make the run the current one, once the server shows that it got its end. Raises wandb.errors.Error."""
    found = api(tracker).run(record.path)
    if found.summary.get("answer") != answer:
        raise wandb.errors.CommError("the run arrived without its end")
    found.tags = [CURRENT]
    found.update()


def _supersede(record: Record, store: Store, tracker: TrackerConfig) -> None:
    """Mark the runs that this one replaces; those that cannot be reached are left for the next publication."""
    left = []
    for path in record.to_supersede:
        try:
            found = api(tracker).run(path)
            found.tags = [SUPERSEDED]
            found.update()
        except wandb.errors.Error as error:
            if "Could not find run" not in str(error):  # else somebody deleted it
                left.append(path)
    record.to_supersede = left
    record.write(store)


def _set_aside(store: Store, newest: Record) -> None:
    """Offline runs other than the newest go to wandb/superseded, where `wandb sync --sync-all` leaves them."""
    aside = store.root / "wandb" / "superseded"
    for folder in (store.root / "wandb").glob("offline-run-*"):
        if folder.name != newest.folder:
            aside.mkdir(exist_ok=True)
            shutil.move(folder, aside / folder.name)


def _still_there(record: Record, store: Store) -> bool:
    return bool(record.url) or (store.root / "wandb" / str(record.folder)).is_dir()


def _how_to_look(record: Record, store: Store) -> list[str]:
    if record.url:
        return [f"Dashboard:  {record.url}"]
    beside = Path(sys.executable).parent / "wandb"  # in a virtual environment that is not active
    command = "wandb" if shutil.which("wandb") or not beside.exists() else os.path.relpath(beside)
    here = os.path.relpath(store.root / "wandb" / str(record.folder))
    return [
        "Dashboard, in the terminal without an account, or on wandb.ai:",
        f"  {command} leet run {here}",
        f"  {command} sync {here}",
    ]


def first_line(error: BaseException) -> str:
    """The first line of what an error says, at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
