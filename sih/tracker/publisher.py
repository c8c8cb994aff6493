"""Publications: one fresh W&B run each.

W&B cannot rewrite a run's history, so adding to a W&B run would show old and new values together. Workers therefore
never log; a publication reads the whole run, and the newest one has the tag `current`. It gets the tag last, so a
publication that was cut off never has it. `publication.json` in the run's folder names the newest one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import wandb

from sih.config import TrackerConfig
from sih.errors import SihError, first_line
from sih.results.run import Run
from sih.results.trajectories import Trajectories
from sih.tracker.access import api
from sih.tracker.contents import fill, provenance
from sih.tracker.record import (
    CURRENT,
    INCOMPLETE,
    SUPERSEDED,
    Record,
    destination,
    is_current,
    published_already,
    where_it_is,
)


def publish(
    run: Run,
    options: TrackerConfig,
    data: Trajectories,
    emergence: dict[str, Any],
    figures: list[Path],
    contents: str,
    force: bool = False,
) -> list[str]:
    """Publish the run as one fresh W&B run; returns what to tell the user.

    Nothing is measured or changed. If two processes publish at once, the second waits and finds it done, unless
    `force` says to publish anyway.

    Args:
        contents: a digest of everything that the publication shows.

    Raises:
        SihError: W&B refused, could not be reached, or did not get everything; the run is unchanged.
    """
    try:
        with filelock.FileLock(run.root / ".publishing.lock"):
            if not force and is_current(run, options, contents):
                return published_already(run)
            with _staging(run.root / "wandb"):
                return _publish(run, options, data, emergence, figures, contents)
    except (wandb.errors.Error, TimeoutError) as error:
        raise SihError(
            f"W&B could not be reached or refused ({first_line(error)}); every result is in {run.root}. "
            f"Publish with python -m sih.publish run={run.root} tracker={options.mode}"
        ) from None


def _publish(
    run: Run,
    options: TrackerConfig,
    data: Trajectories,
    emergence: dict[str, Any],
    figures: list[Path],
    contents: str,
) -> list[str]:
    online = options.mode == "online"
    record = Record.read(run)
    opened = open_run(run, options, "publication", INCOMPLETE if online else CURRENT, {"provenance": provenance(run)})
    try:
        artifacts = fill(opened, data, emergence, figures)
        if online:
            for artifact in artifacts:
                _wait(artifact, options)
    except BaseException:
        opened.finish(exit_code=1)
        raise
    opened.finish()
    new = Record(
        run=opened.id,
        folder=Path(opened.dir).parent.name,
        url=opened.url if online else None,
        path=f"{opened.entity}/{opened.project}/{opened.id}" if online else None,
        contents=contents,
        destination=destination(options),
        to_supersede=[p for p in (record.path, *record.to_supersede) if p],
    )
    if online:
        record.to_supersede.append(str(new.path))  # in case this process is killed right before it is recorded
        record.write(run)
        _confirm(new, emergence["answer"], options)
    new.write(run)
    _set_aside(run, new)
    if online:
        _supersede(new, run, options)
    return where_it_is(run)


@contextmanager
def _staging(folder: Path) -> Iterator[None]:
    """W&B's own copies of tables stay beside the offline runs that refer to them, and nowhere else on this machine."""
    kept = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder / "data")
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR")
        if kept is not None:
            os.environ["WANDB_DATA_DIR"] = kept


def open_run(
    run: Run, options: TrackerConfig, job_type: str, tag: str, more: dict[str, Any], run_id: str | None = None
) -> wandb.Run:
    """A fresh W&B run for this run, offline or online as configured. Raises wandb.errors.Error."""
    settings = {}
    for score, cells in run.scores.items():
        try:
            settings[score] = cells.setting
        except FileNotFoundError:  # this score has not been measured yet
            continue
    return wandb.init(
        id=run_id,
        project=options.project,
        entity=options.entity,
        dir=run.root,
        mode="online" if options.mode == "online" else "offline",
        group=run.model,
        job_type=job_type,
        name=run.name,
        tags=[tag],
        config={"run": run.name, "model": run.record.model, "seed": run.record.seed, "dtype": run.record.dtype,
                "scores": settings, **more},
        settings=wandb.Settings(
            init_timeout=options.init_timeout,
            finish_timeout=options.finish_timeout,
            finish_timeout_raises=True,
            silent=True,
            console="off",
            disable_git=True,
        ),
    )  # fmt: skip


def _wait(artifact: wandb.Artifact, options: TrackerConfig) -> None:
    """Wait until the whole artifact has arrived. Raises wandb.errors.Error."""
    try:
        artifact.wait(timeout=options.finish_timeout)
    except ValueError as error:
        raise wandb.errors.CommError(str(error)) from None


def _confirm(record: Record, answer: str, options: TrackerConfig) -> None:
    """Tag the W&B run as current, once the server shows that it has all of it. Raises wandb.errors.Error."""
    found = api(options).run(record.path)
    if found.summary.get("answer") != answer:
        raise wandb.errors.CommError("the run did not arrive completely")
    found.tags = [CURRENT]
    found.update()


def _supersede(record: Record, run: Run, options: TrackerConfig) -> None:
    """Tag the runs that this one replaces; those that cannot be reached are left for the next publication."""
    left = []
    for path in record.to_supersede:
        try:
            found = api(options).run(path)
            found.tags = [SUPERSEDED]
            found.update()
        except wandb.errors.Error as error:
            if "Could not find run" not in str(error):  # otherwise it was deleted
                left.append(path)
    record.to_supersede = left
    record.write(run)


def _set_aside(run: Run, newest: Record) -> None:
    """Offline runs other than the newest go to wandb/superseded, where `wandb sync --sync-all` leaves them."""
    aside = run.root / "wandb" / "superseded"
    for folder in (run.root / "wandb").glob("offline-run-*"):
        if folder.name != newest.folder:
            aside.mkdir(exist_ok=True)
            shutil.move(folder, aside / folder.name)
