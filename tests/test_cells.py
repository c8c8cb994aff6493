import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pyarrow as pa
import pytest

from sih.errors import SihError
from sih.results.cells import Cells
from sih.texts.written import csv_text, jsonl

TABLES = {"icl": pa.table({"value": [1.0, 2.0]})}


def begun(tmp_path):
    store = Cells(tmp_path / "tiny" / "icl" / "abc")
    store.begin({"seed": 0}, {"examples.jsonl": jsonl([{"a": 1}])})
    return store


def test_round_trip_and_layout(tmp_path):
    store = begun(tmp_path)
    for step in (512, 0, 143000):
        store.write(step, TABLES, {"step": step})
    assert store.steps() == [0, 512, 143000]
    assert (store.root / "step0000512" / "icl.parquet").is_file()
    assert {**store.manifest(512), "tables_sha256": 0} == {"step": 512, "tables_sha256": 0}
    digest = hashlib.sha256(store.table_file(512, "icl").read_bytes()).hexdigest()
    assert store.manifest(512)["tables_sha256"] == {"icl": digest}
    assert store.setting == {"seed": 0}
    pd.testing.assert_frame_equal(pd.read_parquet(store.table_file(0, "icl")), pd.DataFrame({"value": [1.0, 2.0]}))


def test_the_same_table_gives_the_same_bytes(tmp_path):
    store = begun(tmp_path)
    store.write(1, TABLES, {})
    store.write(2, TABLES, {})
    one, two = (store.root / f"step000000{n}" / "icl.parquet" for n in (1, 2))
    assert one.read_bytes() == two.read_bytes()


def test_beginning_again_with_the_same_inputs_changes_no_byte_and_with_others_is_refused(tmp_path):
    store = begun(tmp_path)
    before = (store.root / "setting.yaml").stat().st_mtime_ns
    begun(tmp_path)
    assert (store.root / "setting.yaml").stat().st_mtime_ns == before
    with pytest.raises(SihError, match=r"examples\.jsonl differs from what this run would measure on"):
        store.begin({"seed": 0}, {"examples.jsonl": jsonl([{"a": 2}])})
    (store.root / "setting.yaml").write_text("seed: 1\n")
    with pytest.raises(SihError, match=r"setting\.yaml differs"):
        begun(tmp_path)


def test_measuring_again_keeps_the_earlier_manifest_as_history(tmp_path):
    store = begun(tmp_path)
    for value in (1, 2, 3):
        store.write(512, {"icl": pa.table({"value": [value]})}, {"value": value})
    assert store.manifest(512)["value"] == 3
    assert pd.read_parquet(store.table_file(512, "icl"))["value"].tolist() == [3]
    history = sorted((store.root / "history").iterdir())
    assert [json.loads(h.read_text())["value"] for h in history] == [1, 2]


def test_killed_between_the_two_moves_of_a_replacement(tmp_path):
    """Every state that a kill can leave while one result replaces another, made by hand."""
    store = begun(tmp_path)
    store.write(5, TABLES, {"value": 1})
    final, replaced = store.root / "step0000005", store.root / ".writing-elsewhere-1-7-replaced-step0000005"
    os.rename(final, replaced)  # the old one is moved away, the new one not yet there
    store.recover(5)
    assert store.manifest(5)["value"] == 1
    shutil.copytree(final, replaced)  # the new one is there, the old one not yet in history
    store.recover(5)
    assert not replaced.exists()
    assert len(list((store.root / "history").iterdir())) == 1
    shutil.copytree(final, replaced)  # its manifest is in history, its tables not yet removed
    (replaced / "manifest.json").unlink()
    store.recover(5)
    assert not replaced.exists()
    assert store.steps() == [5]


def test_failures_are_recorded_and_a_result_clears_them(tmp_path):
    store = begun(tmp_path)
    store.write_failure(7, "NaN losses")
    assert store.failed() == {7: "NaN losses"}
    assert store.steps() == []
    store.write(7, TABLES, {})
    assert store.failed() == {}
    store.write_failure(7, "measured again, and failed")
    assert store.failed() == {}, "the step still has its result"


WRITER = """
import sys, pyarrow as pa
from pathlib import Path
from sih.results.cells import Cells
store = Cells(Path(sys.argv[1]))
store.begin({"seed": 0}, {})
n = 0
while True:
    n += 1
    tables = {name: pa.table({"value": [n] * 50_000}) for name in "abcdef"}
    store.write(5, tables, {"value": n})
    print(n, flush=True)
"""


def test_kill_9_while_writing_leaves_one_whole_result(tmp_path):
    """Killed at many moments, the store always holds one result whose tables and manifest agree."""
    root = tmp_path / "store"
    for delay in (0.0, 0.004, 0.009, 0.013, 0.021, 0.034):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, root], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline()
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store = Cells(root)
        store.begin({"seed": 0}, {})
        assert store.steps() == [5]
        value = store.manifest(5)["value"]
        assert {pd.read_parquet(store.table_file(5, name))["value"].unique().item() for name in "abcdef"} == {value}
        assert not [p for p in root.iterdir() if p.name.startswith(".")]


FULL = """
import resource, sys, pyarrow as pa
import numpy as np
from pathlib import Path
from sih.errors import SihError
from sih.results.cells import Cells
store = Cells(Path(sys.argv[1]))
store.begin({}, {})
store.write(1, {"a": pa.table({"value": [1]})}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
noise = np.random.default_rng(0).random(100_000)
try:
    store.write(1, {"a": pa.table({"value": noise})}, {"step": 1})
except SihError as error:
    print(error)
"""


def test_no_room_is_one_clear_error_and_what_was_there_stays(tmp_path):
    """A real refusal of the kernel to write more: a limit on file size."""
    root = tmp_path / "store"
    said = subprocess.run([sys.executable, "-c", FULL, root], capture_output=True, text=True, check=True).stdout
    assert "cannot be written" in said
    assert "what was measured is kept" in said
    assert pd.read_parquet(Cells(root).table_file(1, "a"))["value"].tolist() == [1]
    assert not [p for p in root.iterdir() if p.name.startswith(".")]


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(SihError, match="cannot be written"):
        Cells(tmp_path / "runs" / "tiny").begin({}, {})


def test_csv_text_quotes():
    assert csv_text(["a", "b"], [["x, y", 1]]) == 'a,b\n"x, y",1\n'
