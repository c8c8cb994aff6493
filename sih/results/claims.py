"""Who measures which cell, among processes and machines that share a run's folder.

A claim is a file that only one process can create. Its holder touches it as long as it lives. A claim is stale when
its process is known to be dead, or has not touched it for `stale_after` seconds by the file system's own clock. A
stale claim is then taken over by exactly one process.

A process is known to be dead when it ran on this host and is gone, or when it belonged to this process's own batch
job before that job was requeued.
"""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import filelock

from sih.checkpoints.aside import process_space

_BEATS = 6  # touches within stale_after


class Claims:
    """One process's claims on the cells of the run in `root`, each named by its label. Close it when leaving.

    Args:
        job: the batch job that this process belongs to, if any.
        restart: how often that job was requeued.
    """

    def __init__(self, root: Path, stale_after: float, job: str | None = None, restart: int = 0) -> None:
        self.folder, self.stale_after = root / ".claims", stale_after
        self._mine = {"host": socket.gethostname(), "space": _space(), "process": os.getpid(),
                      "born": _born(os.getpid()), "job": job, "restart": restart,
                      "stale_after": stale_after}  # fmt: skip
        self._held: set[str] = set()
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def take(self, cell: str) -> bool:
        """Try to claim the cell. False when another living process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if self.holder(cell) is not None:
                return False
            self._file(cell).unlink(missing_ok=True)
            if not self._create(cell):
                return False
        self._held.add(cell)
        self._beat()
        return True

    def release(self, cell: str) -> None:
        """Give a held cell back, unless it was taken over while this machine slept."""
        self._held.discard(cell)
        with self._alone():
            if self.holds(cell):
                self._file(cell).unlink(missing_ok=True)

    def holds(self, cell: str) -> bool:
        """Whether this process still holds the cell; another may have taken it over while this machine slept."""
        try:
            return json.loads(self._file(cell).read_text()) == self._mine
        except (FileNotFoundError, ValueError):  # ValueError: emptied by a power cut
            return False

    def holder(self, cell: str) -> str | None:
        """Who holds the cell, in words; None when no living process does."""
        try:
            claim = json.loads(self._file(cell).read_text())
            age = self._now() - self._file(cell).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: emptied by a power cut
            return None
        if age > claim["stale_after"] or _gone(claim) or self._requeued(claim):
            return None
        job = f", job {claim['job']}" if claim["job"] else ""
        return f"process {claim['process']} on {claim['host']}{job}"

    def touched(self, cell: str) -> float | None:
        """When the cell's claim was last touched, by the file system's clock; None when nobody claims it."""
        try:
            return self._file(cell).stat().st_mtime
        except FileNotFoundError:
            return None

    def living(self) -> dict[str, str]:
        """Every cell that a living process holds, by its label, and who that is."""
        cells = sorted(f.name.removesuffix(".json") for f in self.folder.glob("step*.json"))
        return {cell: holder for cell in cells if (holder := self.holder(cell))}

    def close(self) -> None:
        """Give every claim back."""
        self._ended.set()
        for cell in list(self._held):
            self.release(cell)

    def _alone(self) -> filelock.BaseFileLock:
        """A lock, so that only one process at a time judges an old claim and replaces it."""
        return filelock.FileLock(self.folder / "lock")

    def _requeued(self, claim: dict[str, Any]) -> bool:
        """Whether this process's own job made the claim before it was requeued, on whatever node."""
        mine = self._mine
        return mine["job"] is not None and claim["job"] == mine["job"] and claim["restart"] < mine["restart"]

    def _file(self, cell: str) -> Path:
        return self.folder / f"{cell}.json"

    def _create(self, cell: str) -> bool:
        """Create the claim complete or not at all: on any file system, a link fails where a file already exists."""
        unlinked = self.folder / f".{uuid.uuid4().hex}"
        try:
            unlinked.write_text(json.dumps(self._mine) + "\n")
            os.link(unlinked, self._file(cell))
        except FileExistsError:
            return False
        finally:
            unlinked.unlink(missing_ok=True)
        return True

    def _now(self) -> float:
        """The file system's clock: hosts differ."""
        probe = self.folder / f".now-{uuid.uuid4().hex}"
        try:
            probe.touch()
        except OSError:  # a full or read-only disk: this host's clock has to do
            return time.time()
        now = probe.stat().st_mtime
        probe.unlink()
        return now

    def _beat(self) -> None:
        if self._heart is None:
            self._heart = threading.Thread(target=self._touch, daemon=True)
            self._heart.start()

    def _touch(self) -> None:
        while not self._ended.wait(self.stale_after / _BEATS):
            for cell in list(self._held):
                try:
                    if self.holds(cell):
                        os.utime(self._file(cell))
                    else:
                        self._held.discard(cell)
                except OSError:  # a file system that is away for a moment: there are more beats
                    continue


def _gone(claim: dict[str, Any]) -> bool:
    """Whether the claim's process is known to be gone. Where its id means nothing here, only the claim's age counts."""
    if (claim["host"], claim["space"]) != (socket.gethostname(), _space()):
        return False
    return _born(claim["process"]) not in (claim["born"], "alive")  # alive: another user's, whose birth is hidden


def _space() -> str | None:
    """Names the place and boot within which process ids mean the same; None where that cannot be known."""
    try:
        return f"{process_space()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return None


def _born(process: int) -> str | None:
    """When the process began, in kernel ticks, since ids are reused. None: no such process. "alive": hidden."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # gone, or no /proc: then "alive" or nothing
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return "alive"
        return None if Path("/proc/self/stat").exists() else "alive"
    return None if fields[0] in "ZX" else fields[19]
