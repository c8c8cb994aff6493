"""A private cache of Hub files, in the client's own layout, that never takes up more than its budget."""

import fcntl
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import filelock
from huggingface_hub import scan_cache_dir

from sih.checkpoints.audit import HubFile, Revision
from sih.config import readable_bytes
from sih.errors import CheckpointError


class Cache:
    """Revisions under `folder/hub`; those in use are pinned, the longest unused go when room is needed.

    Args:
        budget: most bytes that `folder/hub` may hold, downloads under way included.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.hub, self.pins, self.budget = folder / "hub", folder / "pins", budget
        self._held: dict[str, IO] = {}  # commit -> its locked pin
        self._changed = threading.Condition()  # of _held

    def has(self, repo: str, wanted: Revision) -> bool:
        """Whether every wanted file of a revision is there."""
        folder = self.hub / f"models--{repo.replace('/', '--')}" / "snapshots" / wanted.commit
        return all((folder / f.name).exists() for f in wanted.wanted)

    def pin(self, commit: str) -> None:
        """Keep a revision until it is released, whichever process wants room."""
        with self._changed:
            if commit not in self._held and (pin := self._lock(commit, fcntl.LOCK_SH)):
                self._held[commit] = pin

    def release(self, commit: str) -> None:
        """The revision may go from now on."""
        with self._changed:
            if pin := self._held.pop(commit, None):
                pin.close()
            self._changed.notify_all()

    def make_room(self, wanted: Revision, stopped: Callable[[], bool]) -> None:
        """Evict until `wanted` fits the budget and the disk; wait while only what is in use is in the way.

        Raises:
            CheckpointError: nothing is left to evict or to wait for, or it was stopped.
        """
        self.hub.mkdir(parents=True, exist_ok=True)
        while not stopped():
            blobs = self._blobs()
            need = sum(f.size for f in wanted.wanted if _blob_name(f) not in blobs)
            free = shutil.disk_usage(self.hub).free
            if sum(blobs.values()) + need <= self.budget and need <= free:
                return
            if self._evict_one(wanted.commit):
                continue
            with self._changed:
                if self._held.keys() <= {wanted.commit}:
                    used = f"{readable_bytes(sum(blobs.values()))} of {readable_bytes(self.budget)}"
                    raise CheckpointError(
                        f"no room for {readable_bytes(need)} in {self.hub}: {readable_bytes(free)} free on the disk, "
                        f"{used} budget in use elsewhere. Free room, raise checkpoints.disk_budget "
                        "or set SIH_CACHE to a larger disk"
                    )
                self._changed.wait(1.0)
        raise CheckpointError("stopped")

    def clear_broken(self) -> None:
        """Remove what a killed process left half-way; what is still being written is locked by its writer."""
        for unfinished in self.hub.glob("models--*/blobs/*.incomplete"):
            repo, blob = unfinished.parents[1].name, unfinished.name.split(".")[0]
            try:
                with filelock.FileLock(self.hub / ".locks" / repo / f"{blob}.lock", timeout=0):
                    unfinished.unlink(missing_ok=True)
            except filelock.Timeout:
                continue

    def forget(self, file: HubFile) -> None:
        """Remove what this process has of a download that it abandons."""
        for unfinished in self.hub.glob(f"models--*/blobs/{_blob_name(file)}.*.incomplete"):
            unfinished.unlink(missing_ok=True)

    def _blobs(self) -> dict[str, int]:
        """Bytes of each file, by name: downloads under way count with what is there of them."""
        found = {}
        for blob in self.hub.glob("models--*/blobs/*"):
            try:
                found[blob.name] = blob.stat().st_size
            except FileNotFoundError:  # renamed or evicted meanwhile
                continue
        return found

    def _evict_one(self, keep: str) -> bool:
        """Remove the longest unused revision that nobody holds; False when there is none."""
        cached = scan_cache_dir(self.hub)
        for _, commit in sorted((r.last_modified, r.commit_hash) for repo in cached.repos for r in repo.revisions):
            if commit == keep or not (pin := self._lock(commit, fcntl.LOCK_EX)):
                continue
            with pin:
                cached.delete_revisions(commit).execute()
            return True
        return False

    def _lock(self, commit: str, kind: int) -> IO | None:
        """A lock on a revision, which ends with its process; None when somebody holds the other kind."""
        self.pins.mkdir(parents=True, exist_ok=True)
        pin = open(self.pins / commit, "w")  # noqa: SIM115  held until it is closed
        try:
            fcntl.flock(pin, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            pin.close()
            return None
        return pin


def _blob_name(file: HubFile) -> str:
    """The client names blobs by sha256 where there is one, else by git's."""
    return file.sha256 or file.git_sha1
