"""Write aside, then rename: how unfinished files are named, and how those of dead processes are removed."""

import os
import re
import shutil
import socket
from pathlib import Path


def process_space() -> str:
    """The namespace of process ids: containers on one host have their own. Empty where the system has none."""
    try:
        return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        return ""


ANY = ".writing-"  # begins the name of every unfinished file
# The process id follows, so that a living process's files are not removed.
_MARK = f"{ANY}{socket.gethostname()}-{process_space()}-"


def prefix() -> str:
    """The beginning of the names of this process's unfinished files and folders."""
    return f"{_MARK}{os.getpid()}-"


def of_the_dead(folder: Path) -> list[Path]:
    """Unfinished files and folders that dead processes of this machine left in `folder`."""
    found = folder.glob(f"{_MARK}*")
    return [path for path in found if not _alive(int(path.name.removeprefix(_MARK).split("-")[0]))]


def clear_dead(folder: Path) -> None:
    """Remove the unfinished files and folders that dead processes of this machine left in `folder`."""
    for path in of_the_dead(folder):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
