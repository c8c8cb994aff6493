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
from conftest import LONG, SMALL, STEPS, composed, result_tables, run_at
from rich.console import Console
from sih.jobs import processes, tasks
from sih.jobs.tasks import Chunk, Finish, measure_steps

from sih import status, sweep
from sih.config import folder_of
from sih.results.claims import Claims
from sih.running import loop
from sih.running.loop import label_of
from sih.running.survey import survey

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


def labels_of(config, step: int) -> list[str]:
    """What the cells of a step are called where they are claimed, before anything is measured."""
    work = survey(config, Console(quiet=True))
    return [label_of(step, work.cells(score)) for score in work.scores]


def times(run) -> set[str]:
    """When each cell was measured."""
    return {cell["measured_at"] for by_score in run.manifests().values() for cell in by_score.values()}


def history(run) -> list:
    """Manifests of cells that were measured again."""
    return list(run.root.glob("*/*/history/*"))


def test_workers_give_the_same_bytes_as_one_process(swept, capsys):
    alone, workers = swept("alone"), swept("workers", *WORKERS)
    assert "2 workers on cpu, cpu" in capsys.readouterr().out
    assert result_tables(run_at(workers)) == result_tables(run_at(alone))
    before = times(run_at(workers))
    again = swept("workers", *WORKERS)
    assert before == times(run_at(again))  # nothing is left to do


def test_what_another_took_over_while_this_machine_slept_is_left_to_it(swept, tmp_path, monkeypatch):
    """The sleeper's result is thrown away; once the other has given up, the cell is measured again."""
    config = composed(*SMALL, f"output={tmp_path / 'sleeper'}")
    root = folder_of(config)
    other = Claims(root, 300, job="17")
    measured, measure = [], loop._Loop._tables

    def sleeps(self, score, model):
        (claim,) = [c for c in (root / ".claims").glob(f"step*.{score}-*.json") if '"job": null' in c.read_text()]
        measured.append(claim.stem)
        if measured.count(claim.stem) == 1 and claim.stem.startswith("step0000001.few_shot"):
            os.utime(claim, (0, 0))
            assert other.take(claim.stem)
            threading.Timer(1.5, other.close).start()
        return measure(self, score, model)

    everything = [label for step in STEPS for label in labels_of(config, step)]
    (lost,) = [label for label in everything if label.startswith("step0000001.few_shot")]
    monkeypatch.setattr(loop._Loop, "_tables", sleeps)
    run = run_at(swept("sleeper"))
    assert sorted(measured) == sorted([*everything, lost])
    assert measured[-1] == lost
    assert not history(run)
    assert all(cells.steps() == STEPS for cells in run.scores.values())


def test_a_task_leaves_what_another_measures_but_not_what_a_dead_machine_held(tmp_path, small_cache, monkeypatch):
    """Of step 1 another measures everything; of step 2 one score, and the dead machine held one; the task the rest."""
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    config = composed(*SMALL, f"output={tmp_path}", "launcher.stale_after=3")
    root = folder_of(config)
    dead, living = Claims(root, 3, job="17"), Claims(root, 3, job="18")
    of_two = {label.split(".")[1].split("-")[0]: label for label in labels_of(config, 2)}
    for label in [*labels_of(config, 0), of_two["few_shot"]]:
        assert dead.take(label)
        claim = root / ".claims" / f"{label}.json"
        claim.write_text(json.dumps(json.loads(claim.read_text()) | {"host": "elsewhere"}))  # touched no more
    for label in [*labels_of(config, 1), of_two["induction"]]:
        assert living.take(label)
    assert measure_steps(config, [0, 1, 2], datetime.now(UTC), Console()) == {}
    steps = {score: cells.steps() for score, cells in survey(config, Console()).run.scores.items()}
    assert steps.pop("induction") == [0]
    assert set(steps) == {"relation_index", "loss_reduction", "few_shot"}
    assert all(measured == [0, 2] for measured in steps.values())
    living.close()
    dead.close()


def test_a_task_measures_what_another_gives_back_unmeasured(tmp_path, small_cache, monkeypatch):
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    config = composed(*SMALL, f"output={tmp_path}")
    other = Claims(folder_of(config), 60, job="17")
    for label in labels_of(config, 1):
        assert other.take(label)
    threading.Timer(2, other.close).start()
    assert measure_steps(config, [1], datetime.now(UTC), Console()) == {}
    assert all(cells.steps() == [1] for cells in survey(config, Console()).run.scores.values())


def test_a_step_of_which_one_score_failed_is_shared_out_again_for_the_others(tmp_path, small_cache, monkeypatch):
    """A worker measures step 0, notes of step 1 that induction fails, and dies."""
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    config = composed(*SMALL, f"output={tmp_path}", *WORKERS)
    work = survey(config, Console())
    rounds = []

    def dies(work, chunks, *_) -> None:
        rounds.append([step for chunk in chunks for step in chunk])
        if len(rounds) == 1:
            measure_steps(config, [0], work.since, Console())
            work.cells("induction").write_failure(1, "out of luck")

    monkeypatch.setattr(processes, "_until_all_end", dies)
    failed = processes.measure_all(work, torch.device("cpu"), Console())
    assert [sorted(steps) for steps in rounds] == [STEPS, STEPS[1:]]
    assert failed[1] == "induction: out of luck"
    assert failed[2] == "its worker ended before it"


def test_a_task_with_a_gpu_never_measures_on_the_cpu(monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "measure_steps", lambda *given: asked.append(given[-1]))
    for options in ([], ["launcher.gpus=0"], ["device=cpu"]):
        Chunk(composed("launcher=slurm", *options), [0], datetime.now(UTC))()
    assert asked == ["cuda", None, None]


def test_the_status_of_a_forced_sweep_is_of_that_sweep(swept, capsys):
    swept("forced")
    config = swept("forced", "steps=[8]", "force=true")
    config.steps = STEPS
    run = run_at(config)
    since = min(cell["measured_at"] for cell in run.manifests()[8].values())
    run.write_text("slurm/1.json", json.dumps({"array": "1", "finish": "2", "since": since}))
    capsys.readouterr()
    assert status.run(config) == 1
    assert "done       1  8" in capsys.readouterr().out
    config.force = False
    assert status.run(config) == 0


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path, small_cache):
    options = [*SMALL, "scores.induction.sequences=60000", *WORKERS, f"output={tmp_path}"]  # seconds for each cell
    parent = subprocess.Popen(
        [sys.executable, "-m", "sih.sweep", *options], env=os.environ | {"SIH_CACHE": str(small_cache)}
    )
    try:
        end = time.monotonic() + 120
        while not (claims := list(tmp_path.glob("*/.claims/step*.json"))):
            assert time.monotonic() < end
            time.sleep(0.1)
        worker = json.loads(claims[0].read_text())["process"]
    finally:
        parent.kill()
        parent.wait()
    assert worker != parent.pid
    root = claims[0].parents[1]
    end = time.monotonic() + 10
    while Claims(root, 300).living():  # a claim of a process of this host that is gone is nobody's
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not list(root.glob("*/*/step*/manifest.json"))


@pytest.mark.slow
def test_a_forced_sweep_that_goes_on_measures_nothing_twice(swept, capsys):
    began = datetime.now(UTC)
    config = swept("forced", "force=true")
    run = run_at(config)
    assert measure_steps(config, STEPS, began, Console()) == {}
    assert not history(run)
    assert measure_steps(config, [2], datetime.now(UTC), Console()) == {}
    assert len(history(run)) == len(run.scores)
    run.scores["few_shot"].write_failure(4, "out of luck")
    assert Finish(config, STEPS, began, run.record)() == []
    capsys.readouterr()
    assert Finish(config, STEPS, datetime.now(UTC), run.record)() == STEPS
    said = capsys.readouterr().out
    assert "step 4 failed: few_shot: out of luck" in said
    assert "without a result: steps 0-2, 8; the same command" in said


@pytest.mark.slow
def test_what_a_killed_worker_leaves_is_measured_by_others(swept, tmp_path, capsys):
    options = [*LONG, *WORKERS]
    root = folder_of(composed(*SMALL, f"output={tmp_path / 'workers'}", *options))
    killed = []

    def kill() -> None:
        while not killed:
            for file in (root / ".claims").glob("step*.json"):
                killed.append(json.loads(file.read_text())["process"])
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run = run_at(swept("workers", *options))
    assert killed
    assert "a worker ended with exit code -9" in capsys.readouterr().out
    assert result_tables(run) == result_tables(run_at(swept("alone", *LONG)))
    assert not history(run)


def test_one_worker_for_each_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert processes.devices(torch.device("cuda"), 8) == ["cuda:0", "cuda:1", "cuda:2"]
    assert processes.devices(torch.device("cuda:1"), 2) == ["cuda:1", "cuda:1"]
    assert processes.devices(torch.device("cpu"), 2) == ["cpu", "cpu"]
