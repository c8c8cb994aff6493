"""A training run's folder that is measured while checkpoints appear in it, and checkpoints that are half-written."""

import _thread
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trainer
from conftest import composed, generated_texts, random_module, run_at, write_checkpoint
from rich.console import Console
from safetensors.torch import load_file

from sih import sweep
from sih.checkpoints import corpus
from sih.checkpoints.files import Sha256
from sih.checkpoints.local import LocalFolder
from sih.checkpoints.naming import OWN
from sih.checkpoints.training import tokenizer_of_corpus
from sih.checkpoints.whole import unfinished, unsettled
from sih.config import Config, folder_of
from sih.errors import SihError
from sih.models import loading
from sih.running.watch import _Looks
from sih.tracker.contents import read_back

FEW = ["scores=[induction]", "scores.induction.sequences=4", "scores.induction.length=8"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    """Three small checkpoints, whole."""
    folder = tmp_path_factory.mktemp("whole")
    modules = [random_module(len(corpus.VOCABULARY), seed=n, layers=1, heads=2, width=16) for n in range(3)]
    return [write_checkpoint(folder / str(n), module, tokenizer_of_corpus()) for n, module in enumerate(modules)]


def options(folder: Path, series: Path, *more: str) -> list[str]:
    kept = [o for o in generated_texts(folder) if not o.startswith("scores.")]
    return ["model=local", f"model.path={series}", *kept, *FEW, *more]


def test_any_naming_of_folders(checkpoints, tmp_path):
    series = tmp_path / "run"
    for step, source in zip((0, 100, 200), checkpoints, strict=True):
        shutil.copytree(source, series / f"checkpoint-{step}")
        shutil.copytree(source, series / f"try2_{step:06d}")
    config = composed(*options(tmp_path, series))
    assert sweep.run(config) == 0
    assert run_at(config).manifest(100)["revision"] == "checkpoint-100"
    assert run_at(config).manifest(100)["tokens"] is None
    own = ["'model.revisions=\"try2_(?P<step>\\d+)\"'"[1:-1], f"output={tmp_path / 'own'}", "model.tokens_per_step=10"]
    config = composed(*options(tmp_path, series, *own))
    assert sweep.run(config) == 0
    assert run_at(config).steps() == [0, 100, 200]
    assert run_at(config).manifest(100)["revision"] == "try2_000100"
    assert run_at(config).manifest(100)["tokens"] == 1000
    shutil.copytree(checkpoints[2], series / "step100")
    with pytest.raises(SihError, match=r"run: checkpoint-100 and step100 are both step 100; choose between them"):
        sweep.run(composed(*options(tmp_path, series)))
    with pytest.raises(SihError, match=r"none of its 7 folders such as .* matches model\.revisions=x"):
        sweep.run(composed(*options(tmp_path, series, "model.revisions='x(?P<step>.)'")))


def broken(checkpoint: Path, tmp_path: Path) -> dict[str, Path]:
    """The checkpoint, half-written in every way that can be told; and as .bin, whole."""
    found = {}

    def copy(name: str) -> Path:
        found[name] = shutil.copytree(checkpoint, tmp_path / "broken" / name)
        return found[name]

    weights = copy("short") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    os.truncate(copy("header") / "model.safetensors", 20)
    os.truncate(copy("empty") / "model.safetensors", 0)
    os.truncate(copy("config") / "config.json", 30)
    os.truncate(copy("tokenizer") / "tokenizer.json", 30)
    tensors = load_file(checkpoint / "model.safetensors")
    whole = copy("bin") / "pytorch_model.bin"
    torch.save(tensors, whole)
    half = copy("half bin") / "pytorch_model.bin"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for name in ("bin", "half bin"):
        (found[name] / "model.safetensors").unlink()
    (copy("shard") / "model.safetensors").rename(found["shard"] / "model-00001-of-00002.safetensors")
    return found


def test_what_is_half_written_is_told_from_what_is_whole(checkpoints, tmp_path):
    found = {name: unfinished(folder) for name, folder in broken(checkpoints[0], tmp_path).items()}
    assert unfinished(checkpoints[0]) is None
    assert found.pop("bin") is None
    assert found == {
        "short": found["short"],
        "header": "model.safetensors ends before its header does",
        "empty": "model.safetensors ends before its header does",
        "config": "config.json is no whole JSON",
        "tokenizer": "tokenizer.json is no whole JSON",
        "half bin": "pytorch_model.bin ends before its directory",
        "shard": "model-00002-of-00002.safetensors is missing",
    }
    size = (checkpoints[0] / "model.safetensors").stat().st_size
    assert found["short"] == f"model.safetensors has {size - 1:,} of {size:,} bytes"


def test_every_beginning_of_a_file_is_half_written(checkpoints, tmp_path):
    """Cut anywhere, the weights never count as whole."""
    folder = shutil.copytree(checkpoints[0], tmp_path / "cut")
    data = (checkpoints[0] / "model.safetensors").read_bytes()
    for end in (0, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:end])
        assert unfinished(folder), end
    (folder / "model.safetensors").write_bytes(data)
    assert unfinished(folder) is None
    assert unsettled(folder) == f"{folder}: its files still change"
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    assert unsettled(folder) is None
    for name, says in (
        ("tokenizer.json", "no tokenizer.json"),
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
    ):
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        assert says in unsettled(folder)
        (folder / name).write_bytes(data)
    assert "has just been removed" in unsettled(tmp_path / "nowhere")


def test_a_half_written_checkpoint_is_refused_and_measured_when_it_is_whole(checkpoints, tmp_path):
    series = tmp_path / "run"
    for step, source in zip((0, 10, 20), checkpoints, strict=True):
        shutil.copytree(source, series / f"step{step}")
    last = series / "step20" / "model.safetensors"
    data = last.read_bytes()
    last.write_bytes(data[:-1000])
    config = composed(*options(tmp_path, series))
    assert sweep.run(config) == 1
    assert "step20 is half-written: model.safetensors has" in run_at(config).failed()[20]["induction"]
    assert run_at(config).steps() == [0, 10]
    last.write_bytes(data)
    assert sweep.run(config) == 0
    assert run_at(config).steps() == [0, 10, 20]


def trained(series: Path, checkpoints: list[Path], steps: tuple[int, ...]) -> None:
    """Write checkpoints as a trainer does, file after file and slowly; the oldest is removed again."""
    for n, step in enumerate(steps):
        folder = series / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            data = (checkpoints[n % len(checkpoints)] / name).read_bytes()
            (folder / name).write_bytes(data[: len(data) // 2])
            time.sleep(0.3)
            (folder / name).write_bytes(data)
        (folder / "optimizer.pt").write_bytes(b"never read")
        time.sleep(0.2)


def started(train: Callable, *args) -> threading.Thread:
    """A trainer in the background; if it fails, watching ends too, as if interrupted."""

    def run():
        try:
            train(*args)
        except BaseException:
            _thread.interrupt_main()
            raise

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_watched_folder_is_measured_as_it_grows_until_a_step(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sih.checkpoints.whole._SETTLED", 0.5)
    series = tmp_path / "run"
    series.mkdir()
    watching = ["watch=true", "watch_until=30", "watch_every=0.1", "tracker.mode=offline"]
    config = composed(*options(tmp_path, series, *watching))
    training = started(trained, series, checkpoints, (0, 10, 20, 30))
    assert sweep.run(config) == 0
    training.join()
    run = run_at(config)
    assert run.steps() == [0, 10, 20, 30]
    assert run.failed() == {}
    assert run.record.offered == [0, 10, 20, 30]
    told = capsys.readouterr().out
    assert told.count("measured in") == 4
    assert told.count("Texts begin without a document start") == 1  # texts are drawn once
    measured = [run.manifest(step)["measured_at"] for step in run.steps()]
    assert measured == sorted(measured)
    (live,) = (run.root / "wandb" / "superseded").iterdir()  # by the publication at the end
    assert [int(row["train_step"]) for row in read_back(live)] == [0, 10, 20, 30]


def test_checkpoints_that_training_removed_stay_measured(checkpoints, tmp_path, monkeypatch):
    """As with transformers' save_total_limit."""
    monkeypatch.setattr("sih.checkpoints.whole._SETTLED", 0.0)
    series = tmp_path / "run"
    shutil.copytree(checkpoints[0], series / "checkpoint-10")
    config = composed(*options(tmp_path, series, "watch=true", "watch_until=20", "watch_every=0.05"))

    def rotate():
        while not list(folder_of(config).glob("induction/*/step*/manifest.json")):
            time.sleep(0.1)
        shutil.rmtree(series / "checkpoint-10")
        shutil.copytree(checkpoints[1], tmp_path / "aside")
        (tmp_path / "aside").rename(series / "checkpoint-20")

    training = started(rotate)
    assert sweep.run(config) == 0
    training.join()
    assert run_at(config).steps() == run_at(config).record.offered == [10, 20]


def test_a_checkpoint_that_is_removed_before_it_is_measured_is_named(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sih.checkpoints.whole._SETTLED", 0.0)
    series = tmp_path / "run"
    shutil.copytree(checkpoints[0], series / "checkpoint-10")
    shutil.copytree(checkpoints[1], tmp_path / "aside")

    def load(folder: Path, *args):
        if folder.name == "checkpoint-10":  # the trainer saves the next one, and removes this
            shutil.rmtree(folder)
            (tmp_path / "aside").rename(series / "checkpoint-20")
        return loading.load(folder, *args)

    monkeypatch.setattr("sih.running.loop.loading", Namespace(load=load, shape_of=loading.shape_of))
    config = composed(*options(tmp_path, series, "watch=true", "watch_until=20", "watch_every=0.05"))
    assert sweep.run(config) == 1
    assert run_at(config).steps() == [20]
    assert run_at(config).failed() == {10: {"induction": "its files were removed before it was measured"}}
    assert "step 10 failed: its files were removed before it was measured" in capsys.readouterr().out


def test_a_checkpoint_that_is_removed_before_its_turn(checkpoints, tmp_path):
    for step in (0, 1):
        shutil.copytree(checkpoints[step], tmp_path / f"step{step}")
    source = LocalFolder(tmp_path, Sha256(), OWN)
    shutil.rmtree(tmp_path / "step1")
    (_, first), (_, second) = source.stream([0, 1], lambda *_: None)
    assert first.folder == tmp_path / "step0"
    assert str(second) == "its files were removed before it was measured"


def test_what_keeps_a_checkpoint_from_being_whole_is_said_once(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sih.checkpoints.whole._SETTLED", 0.0)
    monkeypatch.setattr("sih.running.watch._PATIENCE", 0.1)
    for step in (10, 20):
        shutil.copytree(checkpoints[0], tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-20" / "tokenizer.json").unlink()
    look = _Looks(composed("model=local", f"model.path={tmp_path}"), Console(width=200))
    for _ in range(4):
        assert look().steps == [10]
        time.sleep(0.1)
    told = capsys.readouterr().out
    assert told.startswith(f"Not measured until it is whole: {tmp_path / 'checkpoint-20'}: no tokenizer.json there")
    assert told.count("Not measured") == 1
    shutil.rmtree(tmp_path / "checkpoint-20")
    look()
    look()
    assert capsys.readouterr().out == "step 20: removed before it was there as a whole\n"


OPENED = """
import sys
from sih.sweep import main
files = open(sys.argv.pop(1), "w")
sys.addaudithook(lambda event, args: event == "open" and print(args[0], file=files, flush=True))
main()
"""


@pytest.mark.slow
def test_a_run_of_transformers_own_trainer(tmp_path):
    """It keeps its last two checkpoints, with the state of its optimiser beside the weights, which is never opened."""
    series, opened = tmp_path / "run", tmp_path / "opened"
    series.mkdir()
    words = options(tmp_path, series, "watch=true", f"watch_until={trainer.STEPS}", "watch_every=0.05")
    training = subprocess.Popen(
        [sys.executable, trainer.__file__, series, tmp_path / "runs" / "run"], stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        watching = subprocess.run(
            [sys.executable, "-c", OPENED, opened, *words], capture_output=True, text=True, timeout=300
        )
        assert watching.returncode == 0, watching.stdout + watching.stderr
        assert training.wait(60) == 0, training.stderr.read()
    finally:
        training.kill()
    run = run_at(composed(*words))
    assert run.steps() == run.record.offered == [2, 4, 6, 8]
    assert len({run.manifest(step)["weights_sha256"]["model.safetensors"] for step in run.steps()}) == 4
    assert sorted(f.name for f in series.iterdir()) == ["checkpoint-6", "checkpoint-8"]
    kept = {f.name for f in (series / "checkpoint-8").iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"} < kept
    files = [Path(line) for line in opened.read_text().splitlines()]
    read = {f.name for f in files if f.parent.parent == series}
    assert read == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.slow
def test_an_interrupt_ends_the_watching_with_an_answer(checkpoints, tmp_path):
    series = tmp_path / "run"
    shutil.copytree(checkpoints[0], series / "step5")
    words = options(tmp_path, series, "watch=true", "watch_every=0.1")
    process = subprocess.Popen(
        [sys.executable, "-m", "sih.sweep", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    root = tmp_path / "runs" / "run"
    while not list(root.glob("induction/*/step*/manifest.json")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Stopped watching; what was measured is kept." in said
    assert json.loads((root / "emergence.json").read_text())["steps"] == [5]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model=tiny", "watch=true"], "it needs model=local"),
        (["watch=true", "steps=[0]"], "and steps=all"),
        (["watch=true", "launcher=processes"], "launcher=local"),
        (["watch_until=3"], "watch_until=3 needs watch=true"),
        (["watch_every=0"], "watch_every=0.0; expected more than 0 seconds"),
    ],
)
def test_what_cannot_be_watched(tmp_path, overrides, says):
    config: Config = composed("model=local", f"model.path={tmp_path}", *overrides)
    with pytest.raises(SihError, match=says):
        sweep.run(config)
