"""Worker processes on one machine: the same tables, and what a killed one leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
import torch
from conftest import LONG, SMALL, STEPS, composed, result_tables
from rich.console import Console
from sih.jobs import processes, tasks
from sih.jobs.tasks import Chunk, Finish, measure_steps

from sih import loop, status, sweep
from sih.results import locate
from sih.results.cells import folder_name
from sih.results.claims import Claims

WORKERS = ["launcher=processes", "launcher.parallel=2"]


@pytest.fixture
def swept(small_cache, monkeypatch, tmp_path):
    """`swept(name, *options)`: the configuration, after a sweep into a folder of that name."""
    monkeypatch.setenv("SIH_CACHE", str(small_cache))

    def run(name: str, *options: str):
        config = composed(*SMALL, f"output={tmp_path / name}", *options)
        assert sweep.run(config) == 0
        return config

    return run


def test_workers_give_the_same_bytes_as_one_process(swept, capsys):
    alone, workers = swept("alone"), swept("workers", *WORKERS)
    assert "2 workers on cpu, cpu" in capsys.readouterr().out
    assert result_tables(locate(workers).store) == result_tables(locate(alone).store)
    hosts = {locate(workers).store.manifest(step)["measured_at"] for step in STEPS}
    again = swept("workers", *WORKERS)
    assert hosts == {locate(again).store.manifest(step)["measured_at"] for step in STEPS}  # nothing is left to do


def test_what_another_took_over_while_this_machine_slept_is_left_to_it(swept, tmp_path, monkeypatch):
    """The sleeper's result is thrown away; once the other has given up, the step is measured again."""
    store = locate(composed(*SMALL, f"output={tmp_path / 'sleeper'}")).store
    other = Claims(store.root, 300, job="17")
    measured, measure = [], loop.measure

    def sleeps(*given):
        (claim,) = [c for c in (store.root / ".claims").glob("step*.json") if '"job": null' in c.read_text()]
        measured.append(claim.stem)
        if measured.count("step0000001") == 1 and claim.stem == "step0000001":
            os.utime(claim, (0, 0))
            assert other.take(1)
            threading.Timer(1.5, other.close).start()
        return measure(*given)

    monkeypatch.setattr(loop, "measure", sleeps)
    swept("sleeper")
    assert sorted(measured) == sorted([*(folder_name(s) for s in STEPS), folder_name(1)])
    assert measured[-1] == folder_name(1)
    assert not (store.root / "history").exists()
    assert store.steps() == STEPS


def test_a_task_leaves_what_another_measures_but_not_what_a_dead_machine_held(tmp_path, small_cache, monkeypatch):
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    config = composed(*SMALL, f"output={tmp_path}", "launcher.stale_after=3")
    store = locate(config).store
    dead, living = Claims(store.root, 3, job="17"), Claims(store.root, 3, job="18")
    assert dead.take(0)
    assert living.take(1)
    claim = store.root / ".claims" / f"{folder_name(0)}.json"
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"host": "elsewhere"}))  # touched no more
    assert measure_steps(config, [0, 1, 2], datetime.now(UTC), Console()) == {}
    assert store.steps() == [0, 2]
    living.close()
    dead.close()


def test_a_task_measures_what_another_gives_back_unmeasured(tmp_path, small_cache, monkeypatch):
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    config = composed(*SMALL, f"output={tmp_path}")
    store = locate(config).store
    other = Claims(store.root, 60, job="17")
    assert other.take(1)
    threading.Timer(5, other.close).start()
    assert measure_steps(config, [1], datetime.now(UTC), Console()) == {}
    assert store.steps() == [1]


def test_a_task_with_a_gpu_never_measures_on_the_cpu(monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "measure_steps", lambda *given: asked.append(given[-1]))
    for options in ([], ["launcher.gpus=0"], ["device=cpu"]):
        Chunk(composed("launcher=slurm", *options), [0], datetime.now(UTC))()
    assert asked == ["cuda", None, None]


def test_the_status_of_a_forced_sweep_is_of_that_sweep(swept, capsys):
    store = locate(swept("forced")).store
    config = swept("forced", "steps=[8]", "force=true")
    config.steps = STEPS
    since = datetime.fromisoformat(store.manifest(8)["measured_at"])
    store.write_text("slurm/1.json", json.dumps({"array": "1", "finish": "2", "since": since.isoformat()}))
    capsys.readouterr()
    assert status.run(config) == 1
    assert "done       1  8" in capsys.readouterr().out
    config.force = False
    assert status.run(config) == 0


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path, small_cache):
    options = [*SMALL, "heads.sequences=60000", *WORKERS, f"output={tmp_path}"]  # a minute for each checkpoint
    parent = subprocess.Popen(
        [sys.executable, "-m", "sih.sweep", *options], env=os.environ | {"SIH_CACHE": str(small_cache)}
    )
    try:
        end = time.monotonic() + 120
        while not (claims := list(tmp_path.glob("*/*/.claims/step*.json"))):
            assert time.monotonic() < end
            time.sleep(0.1)
        worker = json.loads(claims[0].read_text())["process"]
    finally:
        parent.kill()
        parent.wait()
    assert worker != parent.pid
    store = Store(claims[0].parents[1])
    end = time.monotonic() + 10
    while Claims(store.root, 300).living():  # a claim of a process of this host that is gone is nobody's
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not store.steps()


@pytest.mark.slow
def test_a_forced_sweep_that_goes_on_measures_nothing_twice(swept, capsys):
    began = datetime.now(UTC)
    config = swept("forced", "force=true")
    store = locate(config).store
    assert measure_steps(config, STEPS, began, Console()) == {}
    assert not (store.root / "history").exists()
    assert measure_steps(config, [2], datetime.now(UTC), Console()) == {}
    assert len(list((store.root / "history").iterdir())) == 1
    store.write_failure(4, "out of luck")
    assert Finish(config, STEPS, began)() == []
    capsys.readouterr()
    assert Finish(config, STEPS, datetime.now(UTC))() == STEPS
    said = capsys.readouterr().out
    assert "step 4 failed: out of luck" in said
    assert "without a result: steps 0-2, 8; the same command" in said


@pytest.mark.slow
def test_what_a_killed_worker_leaves_is_measured_by_others(swept, tmp_path, capsys):
    options = [*LONG, *WORKERS]
    store = locate(composed(*SMALL, f"output={tmp_path / 'workers'}", *options)).store
    killed = []

    def kill() -> None:
        while not killed:
            for file in (store.root / ".claims").glob("step*.json"):
                killed.append(json.loads(file.read_text())["process"])
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    swept("workers", *options)
    assert killed
    assert "a worker ended with exit code -9" in capsys.readouterr().out
    assert result_tables(store) == result_tables(locate(swept("alone", *LONG)).store)
    assert not (store.root / "history").exists()


def test_one_worker_for_each_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert processes.devices(torch.device("cuda"), 8) == ["cuda:0", "cuda:1", "cuda:2"]
    assert processes.devices(torch.device("cuda:1"), 2) == ["cuda:1", "cuda:1"]
    assert processes.devices(torch.device("cpu"), 2) == ["cpu", "cpu"]
