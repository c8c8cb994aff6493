"""A private cache of Hub files, in the client's own layout, that never takes up more than its budget."""

import fcntl
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import filelock
from huggingface_hub import scan_cache_dir

from sih.checkpoints.audit import HubFile, Revision
from sih.config import readable_bytes
from sih.errors import CheckpointError


class Cache:
    """Revisions under `folder/hub`: those in use are pinned, and the longest unused go when room is needed.

    Several processes may share it: none removes what another uses, but each enforces the budget by itself.

    Args:
        budget: most bytes that `folder/hub` may hold, including downloads under way.
        patience: seconds to wait for room that another process holds.
    """

    def __init__(self, folder: Path, budget: int, patience: float = 600.0) -> None:
        self.hub, self.pins, self.budget, self.patience = folder / "hub", folder / "pins", budget, patience
        self._held: dict[int, IO] = {}  # step -> the locked pin of its commit
        self._changed = threading.Condition()  # of _held

    def has(self, wanted: Revision) -> bool:
        """Whether every wanted file of a revision is there."""
        folder = self.hub / _folder(wanted.repo) / "snapshots" / wanted.commit
        return all((folder / f.name).exists() for f in wanted.wanted)

    def pin(self, step: int, commit: str) -> None:
        """Keep a revision until its step is released, even when another process needs room."""
        pin = self._lock(commit, fcntl.LOCK_SH)
        with self._changed:
            self._held[step] = pin

    def release(self, step: int) -> None:
        """Allow the step's revision to be removed."""
        with self._changed:
            if pin := self._held.pop(step, None):
                pin.close()
            self._changed.notify_all()

    def make_room(self, step: int, wanted: Revision, stopped: Callable[[], bool]) -> None:
        """Evict until `wanted` fits the budget and the disk; wait while everything left is in use.

        Raises:
            CheckpointError: there is nothing left to evict or to wait for, or the sweep was stopped.
        """
        self.hub.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.patience
        while not stopped():
            blobs = self._blobs()
            need = sum(f.size for f in wanted.wanted if (_folder(wanted.repo), _blob_name(f)) not in blobs)
            free = shutil.disk_usage(self.hub).free
            if need == 0 or (sum(blobs.values()) + need <= self.budget and need <= free):
                return
            if self._evict_one(wanted.commit):
                continue
            with self._changed:
                if self._held.keys() <= {step} and time.monotonic() > deadline:
                    used = f"{readable_bytes(sum(blobs.values()))} of {readable_bytes(self.budget)}"
                    raise CheckpointError(
                        f"no room for {readable_bytes(need)} in {self.hub}: {readable_bytes(free)} free on the disk, "
                        f"{used} budget in use elsewhere. Free room, raise checkpoints.disk_budget "
                        "or set SIH_CACHE to a larger disk"
                    )
                self._changed.wait(min(1.0, max(self.patience, 0.01)))
        raise CheckpointError("stopped")

    def clear_broken(self) -> None:
        """Remove what a killed process left: partial files, links to nothing, and files that nothing links to.

        A file that is being written is locked by its writer, and stays.
        """
        for repo in self.hub.glob("models--*"):
            linked = set()
            for link in repo.glob("snapshots/*/*"):
                if link.exists():
                    linked.add(link.resolve().name)
                else:
                    link.unlink(missing_ok=True)
            for blob in repo.glob("blobs/*"):
                if blob.name in linked:
                    continue
                lock = self.hub / ".locks" / repo.name / f"{blob.name.split('.')[0]}.lock"
                try:
                    with filelock.FileLock(lock, timeout=0):
                        blob.unlink(missing_ok=True)
                except filelock.Timeout:
                    continue

    def forget(self, file: HubFile) -> None:
        """Remove the partial file of a download that this process abandons."""
        for unfinished in self.hub.glob(f"models--*/blobs/{_blob_name(file)}.*.incomplete"):
            unfinished.unlink(missing_ok=True)

    def _blobs(self) -> dict[tuple[str, str], int]:
        """Bytes of each file, by repository and name; a download under way counts with what it has so far."""
        found = {}
        for blob in self.hub.glob("models--*/blobs/*"):
            try:
                found[blob.parents[1].name, blob.name] = blob.stat().st_size
            except FileNotFoundError:  # renamed or evicted meanwhile
                continue
        return found

    def _evict_one(self, keep: str) -> bool:
        """Remove the longest unused revision that no process holds; False when none can be removed."""
        cached = scan_cache_dir(self.hub)
        revisions = (r for repo in cached.repos for r in repo.revisions if r.commit_hash != keep)
        for r in sorted(revisions, key=lambda r: (r.last_modified, r.commit_hash)):
            try:
                pin = self._lock(r.commit_hash, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            with pin:
                cached.delete_revisions(r.commit_hash).execute()
            if not r.snapshot_path.exists():
                return True
        return False

    def _lock(self, commit: str, kind: int) -> IO:
        """A lock on a revision that ends with its process. Raises BlockingIOError instead of waiting, if asked to."""
        self.pins.mkdir(parents=True, exist_ok=True)
        pin = open(self.pins / commit, "w")  # noqa: SIM115  held until it is closed
        try:
            fcntl.flock(pin, kind)
        except BlockingIOError:
            pin.close()
            raise
        return pin


def _folder(repo: str) -> str:
    return f"models--{repo.replace('/', '--')}"


def _blob_name(file: HubFile) -> str:
    """The client names blobs by sha256 where there is one, else by git's."""
    return file.sha256 or file.git_sha1
