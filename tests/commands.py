"""A command of sih as it is called from a shell, in this process: starting another one takes seconds."""

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

import pytest


@dataclass(frozen=True)
class Done:
    """What became of a command, as subprocess.run tells it."""

    returncode: int
    stdout: str
    stderr: str


def called(main: Callable[[], None], *words: str) -> Done:
    """Call the `main` of a command with these words."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["sih", *words]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = ended.value.code
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())
