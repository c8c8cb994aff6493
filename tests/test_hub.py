"""The real huggingface_hub client against a loopback server. A subprocess each, since the client reads its
endpoint and offline switch once, when it is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_module, write_checkpoint
from hub_server import Hub
from safetensors.torch import load_file

from sih import corpus
from sih.checkpoints.tiny import tokenizer_of_corpus

OPEN = """
import json, sys
from pathlib import Path
from sih.checkpoints.hub import HubModel
from sih.datafiles import sha256_of
from sih.errors import CheckpointError, SihError
from sih.model import load, weight_files
import torch
try:
    hub = HubModel(sys.argv[1], Path(sys.argv[2]))
except SihError as error:
    print(json.dumps({"error": str(error)}))
    raise SystemExit
found = {"steps": hub.steps}
for step in hub.steps:
    try:
        checkpoint = hub.open(step)
        weights = weight_files(checkpoint.folder)
        load(checkpoint.folder, torch.device("cpu"))
        found[step] = [checkpoint.revision, checkpoint.commit_sha, [f.name for f in weights], sha256_of(weights[0])]
    except CheckpointError as error:
        found[step] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def revisions(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hub")
    found = {}
    for n, step in enumerate([0, 512, 1000, 2000]):
        found[f"step{step}"] = write_checkpoint(
            folder / f"step{step}", random_module(len(corpus.VOCABULARY), seed=n), tokenizer_of_corpus()
        )
    only_bin = found["step512"]
    torch.save(load_file(only_bin / "model.safetensors"), only_bin / "pytorch_model.bin")
    (only_bin / "model.safetensors").unlink()
    torch.save({}, found["step1000"] / "pytorch_model.bin")  # never fetched: there are safetensors
    (found["step2000"] / "model.safetensors").unlink()
    return {**found, "main": found["step1000"]}


def opened(endpoint: str, repository: str, cache: Path, **environment: str) -> dict:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, repository, cache / "hub"], capture_output=True, text=True, env=env, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_every_revision_is_fetched_by_its_commit_and_only_what_is_needed(revisions, tmp_path):
    with Hub({"me/model": revisions}) as hub:
        found = opened(hub.url, "me/model", tmp_path, HF_TOKEN="")
    assert found["steps"] == [0, 512, 1000, 2000]
    from sih.datafiles import sha256_of

    for step in (0, 1000):
        file = revisions[f"step{step}"] / "model.safetensors"
        assert found[str(step)] == [
            f"step{step}", Hub.commit("me/model", f"step{step}"), ["model.safetensors"], sha256_of(file),
        ]  # fmt: skip
    assert found["512"][2] == ["pytorch_model.bin"]
    assert "the revision has no weights" in found["2000"]
    fetched = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    commit = Hub.commit("me/model", "step1000")
    assert not [p for p in fetched if commit in p and p.endswith(".bin")]


@pytest.mark.parametrize(
    ("repository", "says"),
    [("me/gated", "is gated: accept its terms"), ("me/none", "no such repository on the Hub, or a private one")],
)
def test_gated_and_missing_repositories_say_what_to_do(revisions, tmp_path, repository, says):
    with Hub({"me/gated": revisions}, gated=("me/gated",)) as hub:
        assert says in opened(hub.url, repository, tmp_path)["error"]


def test_a_repository_without_steps(revisions, tmp_path):
    with Hub({"me/model": {"main": revisions["main"]}}) as hub:
        assert "no branches named step{N}" in opened(hub.url, "me/model", tmp_path)["error"]


def test_an_endpoint_that_is_not_there(tmp_path):
    assert "the Hub cannot be reached" in opened("http://127.0.0.1:9", "me/model", tmp_path)["error"]


def test_offline_says_so(tmp_path):
    found = opened("http://127.0.0.1:9", "me/model", tmp_path, HF_HUB_OFFLINE="1")
    assert "the Hub cannot be reached" in found["error"]
