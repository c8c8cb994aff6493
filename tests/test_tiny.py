import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import composed

from sih.checkpoints import training
from sih.checkpoints.files import Sha256
from sih.checkpoints.tiny import TinySeries
from sih.errors import SihError
from sih.models.loading import load

RECIPE = ["model.train.steps=[0,1,3]", "model.train.width=16", "model.train.heads=2"]


def train(cache, *overrides, progress=lambda *_: None):
    config = composed(*RECIPE, *overrides)
    return TinySeries(config.model.train, config.model.seed, cache, progress, Sha256())


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes_and_ordinary_folders(tmp_path):
    seen = []
    first = train(tmp_path / "a", progress=lambda *told: seen.append(told))
    second = train(tmp_path / "b")
    assert digests(first.folder) == digests(second.folder)
    assert first.folder.name == second.folder.name
    assert first.steps == [0, 1, 3]
    assert [told[:2] for told in seen] == [(1, 3), (2, 3), (3, 3)]
    assert {p.name for p in (first.folder / "step3").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    for step in first.steps:
        assert load(first.folder / f"step{step}", torch.device("cpu")).n_layers == 2


def test_another_seed_is_another_series(tmp_path):
    first, other = train(tmp_path), train(tmp_path, "model.seed=1")
    assert first.folder != other.folder
    a, b = (digests(s.folder)["step0/model.safetensors"] for s in (first, other))
    assert a != b


def test_trained_once_then_read_from_the_cache(tmp_path):
    train(tmp_path)

    def never(*_):
        raise AssertionError("trained again")

    assert train(tmp_path, progress=never).steps == [0, 1, 3]


def test_the_learning_rate_warms_up_stays_and_falls_to_a_tenth():
    rates = [training._schedule(step, 400) for step in range(400)]
    assert rates[:50] == sorted(rates[:50])
    assert set(rates[49:301]) == {1.0}
    assert rates[300:] == sorted(rates[300:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_training_leaves_torchs_own_seed_alone(tmp_path):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path)
    assert torch.equal(torch.rand(3), want)


TRAINER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_tiny import train
train(Path(sys.argv[1]), "model.train.steps=[0,2000]", progress=lambda *t: print(t, flush=True))
"""


@pytest.mark.slow
def test_a_killed_training_leaves_no_series(tmp_path):
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, tmp_path, here], stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout.readline()
        time.sleep(0.05)
        os.kill(trainer.pid, signal.SIGKILL)
    assert not [p for p in (tmp_path / "tiny").iterdir() if not p.name.startswith(".")]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "tiny").write_text("a file where the folder should be")
    with pytest.raises(SihError, match=r"cannot be written.*set SIH_CACHE"):
        train(tmp_path)
