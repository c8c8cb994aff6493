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


# Then the process id, so that nobody clears a live one's.
_MARK = f".writing-{socket.gethostname()}-{process_space()}-"


def prefix() -> str:
    """What names of this process's unfinished files and folders begin with."""
    return f"{_MARK}{os.getpid()}-"


def clear_dead(folder: Path) -> None:
    """Remove what processes of this machine that are no more left unfinished in `folder`."""
    for aside in folder.glob(f"{_MARK}*"):
        if not _alive(int(aside.name.removeprefix(_MARK).split("-")[0])):
            shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
