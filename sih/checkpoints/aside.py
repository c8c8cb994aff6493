"""Write aside, then rename: names of unfinished files, and clearing away what a dead process left of them."""

import os
import re
import shutil
import socket
from pathlib import Path


def process_space() -> str:
    """Where process numbers mean the same: containers on one host have their own. Empty where there are none."""
    try:
        return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        return ""


ANY = ".writing-"  # what names of anybody's unfinished files begin with
# Then the process id, so that nobody clears a live one's.
_MARK = f"{ANY}{socket.gethostname()}-{process_space()}-"


def prefix() -> str:
    """What names of this process's unfinished files and folders begin with."""
    return f"{_MARK}{os.getpid()}-"


def of_the_dead(folder: Path) -> list[Path]:
    """What processes of this machine that are no more left unfinished in `folder`."""
    found = folder.glob(f"{_MARK}*")
    return [path for path in found if not _alive(int(path.name.removeprefix(_MARK).split("-")[0]))]


def clear_dead(folder: Path) -> None:
    """Remove what processes of this machine that are no more left unfinished in `folder`."""
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
