"""The real huggingface_hub client against a loopback server that fails in every way it is told to."""

import email.utils
import errno
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import filelock
import httpx2
import huggingface_hub
import pytest
import torch
from conftest import composed, generated_texts, random_module, run_at, write_checkpoint
from hub_server import Fault, Hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file

from sih import sweep
from sih.checkpoints import Checkpoint, corpus
from sih.checkpoints.cache import Cache
from sih.checkpoints.files import Sha256, sha256_of
from sih.checkpoints.hub import HubModel
from sih.checkpoints.naming import OWN, Naming
from sih.checkpoints.retries import retry_after
from sih.checkpoints.revisions import HubSeries
from sih.checkpoints.schedule import PYTHIA_STEPS
from sih.checkpoints.training import tokenizer_of_corpus
from sih.config import CheckpointsConfig, bytes_of
from sih.errors import CheckpointError, SihError
from sih.models.loading import load, weight_files
from sih.results.run import suspect

NAME = "me/model"
EVER = float("inf")


@pytest.fixture(scope="module")
def revisions(tmp_path_factory) -> dict[str, Path]:
    """Five checkpoints: plain, .bin only, sharded, without weights, and plain; main is the last."""
    folder = tmp_path_factory.mktemp("hub")
    found = {}
    for n, step in enumerate([0, 512, 1000, 2000, 3000]):
        module = random_module(len(corpus.VOCABULARY), seed=n)
        found[f"step{step}"] = write_checkpoint(folder / f"step{step}", module, tokenizer_of_corpus())
        if step == 1000:
            (found["step1000"] / "model.safetensors").unlink()
            module.save_pretrained(found["step1000"], max_shard_size="60KB")
    only_bin = found["step512"]
    torch.save(load_file(only_bin / "model.safetensors"), only_bin / "pytorch_model.bin")
    (only_bin / "model.safetensors").unlink()
    torch.save({}, found["step0"] / "pytorch_model.bin")  # never fetched: there are safetensors
    (found["step2000"] / "model.safetensors").unlink()
    return {**found, "main": found["step3000"]}


@pytest.fixture
def served(revisions, tmp_path, monkeypatch):
    """`served(hub, ...)`: the repository through that server, with its own cache; nobody really sleeps in the client."""
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(huggingface_hub.utils._http, "time", quick)
    monkeypatch.setattr(huggingface_hub.file_download, "time", quick)
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def model(hub: Hub, name: str | HubSeries = NAME, budget: str = "1GB", ahead: int = 1, hashes=None) -> HubModel:
        options = CheckpointsConfig(disk_budget=budget, ahead=ahead, attempts=3, first_wait=0.01, allow_suspect=False)
        series = name if isinstance(name, HubSeries) else HubSeries((name,), OWN, "last", PYTHIA_STEPS)
        return HubModel(series, tmp_path / "cache", options, hashes or Sha256(), endpoint=hub.url)

    return model


def streamed(model: HubModel, steps: list[int]) -> dict[int, Checkpoint | str]:
    """Every step's checkpoint, whose files were there and right when it was its turn, or its error."""
    found: dict[int, Checkpoint | str] = {}
    for step, checkpoint in model.stream(steps, lambda *_: None):
        if isinstance(checkpoint, CheckpointError):
            found[step] = str(checkpoint)
            continue
        found[step] = checkpoint
        for file in model.audit.revisions[step].weights:
            assert sha256_of(checkpoint.folder / file.name) == file.sha256
    return found


@contextmanager
def watched(cache: Path):
    """Bytes of all files in the cache, every few milliseconds; one that is renamed meanwhile counts once."""
    sizes, done = [0], threading.Event()

    def watch():
        while not done.is_set():
            found = {}
            for blob in cache.glob("models--*/blobs/*"):
                with suppress(FileNotFoundError):
                    found[blob.parents[1].name, blob.name.split(".")[0]] = blob.stat().st_size
            sizes.append(sum(found.values()))
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield sizes
    finally:
        done.set()
        watcher.join()


def unfinished(model: HubModel) -> list[Path]:
    return list(model.cache.hub.glob("models--*/blobs/*.incomplete"))


def test_every_revision_is_fetched_by_its_commit_and_only_what_is_needed(served, revisions, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")  # an empty token is no token
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        assert model.steps == [0, 512, 1000, 2000, 3000]
        found = streamed(model, model.steps)
    for step in (0, 3000):
        folder = found[step].folder
        assert [f.name for f in weight_files(folder)] == ["model.safetensors"]
        assert sha256_of(folder / "model.safetensors") == sha256_of(revisions[f"step{step}"] / "model.safetensors")
        assert found[step].revision == f"step{step}"
        assert found[step].commit_sha == Hub.commit(NAME, f"step{step}")
    assert [f.name for f in weight_files(found[512].folder)] == ["pytorch_model.bin"]
    assert len(weight_files(found[1000].folder)) > 1
    for step in (0, 512, 1000):
        load(found[step].folder, torch.device("cpu"))
    assert "step2000: no weights in the revision" in found[2000]
    assert model.suspect == {2000: "no weights"}
    assert not [p for p in hub.fetched() if Hub.commit(NAME, "step0") in p and p.endswith(".bin")]
    assert not [p for p in hub.fetched() if p.endswith("generation_config.json")]


def test_a_gated_repository_says_what_to_do_and_opens_with_a_token(served, revisions, monkeypatch):
    with Hub({NAME: revisions}, gated=(NAME,)) as hub:
        with pytest.raises(SihError, match="is gated: accept its terms on the Hub, then `hf auth login`"):
            served(hub)
        monkeypatch.setenv("HF_TOKEN", "hf_something")
        assert isinstance(streamed(served(hub), [0])[0], Checkpoint)


def test_a_missing_or_private_repository_says_what_to_do(served, revisions):
    with Hub({NAME: revisions}) as hub, pytest.raises(SihError, match="no such repository on the Hub, or a private"):
        served(hub, "me/none")


def test_a_repository_without_steps(served, revisions):
    says = r"none of its 1 branches and tags such as main matches model\.revisions=step"
    with Hub({NAME: {"main": revisions["main"]}}) as hub, pytest.raises(SihError, match=says):
        served(hub)


def test_two_branches_of_one_step(served, revisions):
    """Which of them is meant cannot be guessed; two branches of one commit are the same checkpoint."""
    series = HubSeries((NAME,), Naming(r"(?:step|again-)(?P<step>\d+)"))
    folders = {"step512": revisions["step512"], "again-512": revisions["step0"]}
    says = r"me/model: again-512 and step512 are both step 512; choose between them with a narrower model\.revisions"
    with Hub({NAME: folders}) as hub, pytest.raises(SihError, match=says):
        served(hub, series)


def test_nobody_at_the_address(served):
    with pytest.raises(SihError, match="the Hub cannot be reached"):
        served(SimpleNamespace(url="http://127.0.0.1:9"))


@pytest.mark.parametrize("where", ["GET /refs", "GET /revision", "HEAD /resolve", "GET model.safetensors"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_that_passes_is_outlived_on_every_call(served, revisions, where, status):
    with Hub({NAME: revisions}) as hub:
        hub.faults = [fault := Fault(where, "status", status, times=2)]
        assert isinstance(streamed(served(hub), [0])[0], Checkpoint)
    assert fault.met == 2


def test_the_server_says_how_long_to_wait(served, revisions):
    """On the branches, where the client itself does not ask again."""
    with Hub({NAME: revisions}) as hub:
        hub.faults = [Fault("GET /refs", "status", 429, {"Retry-After": "1"})]
        served(hub)
        moments = [t for t, (_, path) in zip(hub.moments, hub.requests, strict=True) if "/refs" in path]
    assert len(moments) == 2
    assert moments[1] - moments[0] >= 1.0


def test_retry_after_is_seconds_or_a_date_and_has_an_end():
    def asked(value):
        request = httpx2.Request("GET", "http://hub")
        return retry_after(HfHubHTTPError("429", response=httpx2.Response(429, headers=value, request=request)))

    assert asked({}) == 0
    assert asked({"Retry-After": "7"}) == 7
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert 28 <= asked({"Retry-After": soon}) <= 30
    assert asked({"Retry-After": "tomorrow"}) == 0
    assert asked({"ratelimit": '"api";r=0;t=200'}) == 200


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("GET model.safetensors", "status", 503, times=EVER), "the Hub cannot be reached or refused.*503"),
        (Fault("HEAD model.safetensors", "status", 503, times=EVER), "the Hub cannot be reached or refused.*503"),
        (Fault("GET model.safetensors", "status", 403, times=EVER), "requires a valid token; `hf auth login`.*403"),
        (Fault("GET model.safetensors", "status", 429, {"Retry-After": "3600"}, times=EVER), "refused.*429"),
        (Fault("HEAD config.json", "status", 404, {"X-Error-Code": "EntryNotFound"}, times=EVER), "404"),
        (Fault("GET model.safetensors", "short", times=EVER), "Consistency check failed"),
        (Fault("GET model.safetensors", "reset", times=EVER), "the Hub cannot be reached or refused"),
    ],
    ids=["503", "503 on the head", "403", "429 for an hour", "404", "short", "reset"],
)
def test_what_fails_for_good_fails_that_checkpoint_alone(served, revisions, fault, says):
    """An error with an end; the next checkpoint comes, and nothing half-way is left."""
    fault = replace(fault, where=f"{fault.where} {Hub.commit(NAME, 'step0')}")
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        hub.faults = [fault]
        found = streamed(model, [0, 3000])
    assert re.search(says, found[0])
    assert found[0].startswith(f"{NAME}@step0: ")
    assert isinstance(found[3000], Checkpoint)
    assert not unfinished(model)


@pytest.mark.parametrize("request_", ["GET model.safetensors reset", "GET model.safetensors close",
                                      "GET model.safetensors short", "HEAD model.safetensors reset",
                                      "HEAD tokenizer.json close"])  # fmt: skip
def test_a_broken_answer_is_fetched_on(served, revisions, request_):
    where, kind = request_.rsplit(" ", 1)
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        hub.faults = [fault := Fault(where, kind, times=2)]
        assert isinstance(streamed(model, [0])[0], Checkpoint)
    assert fault.met == 2
    assert not unfinished(model)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_flipped_byte_is_found_and_fetched_again_once(served, revisions, file):
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        hub.faults = [Fault(f"GET {file}", "flip")]
        found = streamed(model, [0])[0]
        assert (found.folder / file).read_bytes() == (revisions["step0"] / file).read_bytes()
        assert len([p for p in hub.fetched() if p.endswith(file)]) == 2


def test_a_byte_that_flips_every_time_is_reported_and_never_kept(served, revisions):
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        hub.faults = [Fault(f"GET model.safetensors {Hub.commit(NAME, 'step0')}", "flip", times=EVER)]
        found = streamed(model, [0, 3000])
        assert "model.safetensors was fetched twice and does not have the sha256 that the Hub gives" in found[0]
        assert isinstance(found[3000], Checkpoint)
        assert len([p for p in hub.fetched() if Hub.commit(NAME, "step0") in p and "safetensors" in p]) == 2
    blobs = {f.name: sha256_of(f) for f in model.cache.hub.glob("models--*/blobs/*") if len(f.name) == 64}
    assert all(name == sha256 for name, sha256 in blobs.items())


def test_a_slow_server_is_waited_for_and_says_how_far_it_is(served, revisions):
    size = (revisions["step0"] / "model.safetensors").stat().st_size
    with Hub({NAME: revisions}, bandwidth=size) as hub:
        said = []
        (result,) = [c for _, c in served(hub).stream([0], lambda *told: said.append(told))]
    assert isinstance(result, Checkpoint)
    assert {step for step, _, _ in said} == {0}
    assert {total for _, _, total in said} == {served_bytes(revisions["step0"])}
    assert all(0 <= there <= total for _, there, total in said)


def served_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in ("model.safetensors", "config.json", "tokenizer.json"))


def test_the_next_checkpoint_is_fetched_while_one_is_in_use(served, revisions):
    with Hub({NAME: revisions}) as hub, closing(served(hub, ahead=1).stream([0, 512, 3000], lambda *_: None)) as found:
        assert next(found)[0] == 0
        time.sleep(1.0)
        asked = {step for step in (0, 512, 3000) for p in hub.fetched() if Hub.commit(NAME, f"step{step}") in p}
        assert asked == {0, 512}  # one ahead, not two


def test_what_is_needless_by_its_turn_is_not_fetched(served, revisions):
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        found = dict(model.stream([0, 512, 3000], lambda *_: None, lambda step: step == 512))
        assert found[512] is None
        assert all(isinstance(found[step], Checkpoint) for step in (0, 3000))
        assert not [path for path in hub.fetched() if Hub.commit(NAME, "step512") in path]


def test_two_checkpoints_of_budget_are_never_exceeded(served, revisions):
    """Peak of the files on disk, looked at every few milliseconds while six are fetched and used."""
    folders = {f"step{s}": revisions["step0"] for s in (0, 1)} | {"main": revisions["step3000"]}
    for n, step in enumerate((2, 4, 8, 16)):
        folders[f"step{step}"] = revisions["step3000"].parent / f"again{step}"
        write_checkpoint(
            folders[f"step{step}"], random_module(len(corpus.VOCABULARY), seed=50 + n), tokenizer_of_corpus()
        )
    one = served_bytes(revisions["step0"])
    with Hub({NAME: folders}, bandwidth=4 * one) as hub:
        model = served(hub, budget=f"{2 * one}B")
        with watched(model.cache.hub) as sizes:
            found = streamed(model, model.steps)
    assert all(isinstance(c, Checkpoint) for c in found.values()), found
    assert one < max(sizes) <= 2 * one
    # Steps 0 and 1 share their weights: fetched once.
    assert len([p for p in hub.fetched() if p.endswith("model.safetensors")]) == 5


def test_a_budget_below_one_checkpoint_says_its_size(served, revisions):
    with Hub({NAME: revisions}) as hub:
        model = served(hub, budget="100KB")
        with pytest.raises(
            SihError, match=r"disk_budget=100KB is less than one checkpoint: me/model@step\d+ has 1\d\dKB"
        ):
            streamed(model, [0, 3000])
        assert not hub.fetched()


def test_room_that_somebody_else_holds(served, revisions, tmp_path):
    """Another process's checkpoint is not removed from under it; ours fails with the reason, and comes later."""
    one = served_bytes(revisions["step0"])
    with Hub({NAME: revisions}) as hub:
        model = served(hub, budget=f"{int(1.5 * one)}B")
        streamed(model, [0])
        other = Cache(tmp_path / "cache", model.cache.budget)
        other.pin(0, Hub.commit(NAME, "step0"))
        model.cache.patience = 0.5
        assert "no room for" in streamed(model, [3000])[3000]
        other.release(0)
        assert isinstance(streamed(model, [3000])[3000], Checkpoint)
    assert not model.cache.has(model.audit.revisions[0])


def test_a_full_disk_fails_that_checkpoint_and_leaves_nothing(served, revisions, monkeypatch):
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # no file may grow beyond: write() itself fails
        try:
            found = streamed(model, [0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "cannot be written to this disk" in found[0]
        assert "set SIH_CACHE to a larger disk" in found[0]
        assert not unfinished(model)
        usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        model.cache.patience = 0.0
        assert "1KB free on the disk" in streamed(model, [0])[0]
        monkeypatch.undo()
        assert isinstance(streamed(model, [0])[0], Checkpoint)


_FILLED = """
import sys, threading, time
from pathlib import Path
from sih.checkpoints import Checkpoint
from sih.checkpoints.files import Sha256
from sih.checkpoints.hub import HubModel
from sih.checkpoints.naming import OWN
from sih.checkpoints.revisions import HubSeries
from sih.config import CheckpointsConfig

disk, address = Path(sys.argv[1]), sys.argv[2]
options = CheckpointsConfig(disk_budget="1GB", ahead=1, attempts=3, first_wait=0.01, allow_suspect=False)
model = HubModel(HubSeries(("me/model",), OWN), disk, options, Sha256(), endpoint=address)

def fill():
    while not list(disk.glob("hub/models--*/blobs/*.incomplete")):
        time.sleep(0.01)
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError as error:
            print("filled", error.errno)

threading.Thread(target=fill, daemon=True).start()
for again in range(2):
    for step, found in model.stream([0], lambda *_: None):
        print("there" if isinstance(found, Checkpoint) else found)
    print("left", len(list(disk.glob("hub/models--*/blobs/*.incomplete"))))
    (disk / "filler").unlink()
    (disk / "filler").touch()
"""


def test_a_disk_that_somebody_fills_during_a_download(revisions, tmp_path):
    """A small disk of its own, really full: ENOSPC from the write, and room again the second time."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"']
    if not shutil.which("unshare") or subprocess.run([*mounted, disk, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk of their own (Linux with user namespaces does)")
    with Hub({NAME: revisions}, bandwidth=served_bytes(revisions["step0"])) as hub:
        told = subprocess.run(
            [*mounted, disk, sys.executable, "-c", _FILLED, disk, hub.url], capture_output=True, text=True
        )
    lines = told.stdout.splitlines()
    assert lines[0] == f"filled {errno.ENOSPC}", told.stderr
    assert lines[1].startswith(f"{NAME}@step0: cannot be written to this disk")
    assert "No space left on device" in lines[1]
    assert lines[2:] == ["left 0", "there", "left 0"]


@pytest.mark.parametrize("kind", ["slow", pytest.param("stalled", marks=pytest.mark.slow)])
def test_leaving_during_a_download_leaves_no_partial_file(served, revisions, kind):
    """The second checkpoint is on its way, dripping or not at all, when the user has enough."""
    size = (revisions["step0"] / "model.safetensors").stat().st_size
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        found = model.stream([0, 3000], lambda *_: None)
        hub.faults = [Fault(f"GET model.safetensors {Hub.commit(NAME, 'step3000')}", "stall", seconds=8)]
        if kind == "slow":
            hub.faults, hub.bandwidth = [], size / 1.5
        next(found)
        while not unfinished(model):
            time.sleep(0.05)
        began = time.monotonic()
        found.close()
        assert time.monotonic() - began < 7
        assert not unfinished(model)
        hub.faults, hub.bandwidth = [], None
        assert isinstance(streamed(model, [3000])[3000], Checkpoint)


def test_what_a_killed_process_left_is_cleared_and_what_is_being_written_is_not(tmp_path):
    cache = Cache(tmp_path, 10**9)
    blobs = cache.hub / "models--me--model" / "blobs"
    blobs.mkdir(parents=True)
    dead, live = blobs / "aa.01234567.incomplete", blobs / "bb.01234567.incomplete"
    dead.write_bytes(b"half")
    live.write_bytes(b"half")
    with filelock.FileLock(cache.hub / ".locks" / "models--me--model" / "bb.lock"):
        cache.clear_broken()
    assert (dead.exists(), live.exists()) == (False, True)


def test_offline_works_from_the_cache_and_says_at_once_what_is_missing(served, revisions, monkeypatch, tmp_path):
    with Hub({NAME: revisions}) as hub:
        streamed(served(hub), [0, 512])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = served(hub)
    assert isinstance(streamed(model, [0, 512])[512], Checkpoint)
    with pytest.raises(SihError, match="the cache lacks me/model at steps 1000, 3000; unset it"):
        streamed(model, [0, 1000, 3000])
    with pytest.raises(SihError, match="me/other was never read on this machine and HF_HUB_OFFLINE is set"):
        served(hub, "me/other")


def test_the_audit_is_read_once_and_only_what_is_new(served, revisions):
    grown = {"step0": revisions["step0"], "main": revisions["main"]}
    with Hub({NAME: grown}) as hub:
        served(hub)
        served(hub)
        assert sum("/revision/" in path for _, path in hub.requests) == 2
        hub.repositories = {NAME: revisions}
        before = len(hub.requests)
        assert served(hub).steps == [0, 512, 1000, 2000, 3000]
        assert len(hub.requests) - before == 1 + 4


def test_a_revision_that_cannot_be_listed_is_no_suspect_and_comes_later(served, revisions):
    with Hub({NAME: revisions}) as hub:
        hub.faults = [Fault(f"GET revision {Hub.commit(NAME, 'step512')}", "status", 500, times=EVER)]
        model = served(hub)
        assert model.suspect == {2000: "no weights"}
        assert model.steps == [0, 512, 1000, 2000, 3000]
        assert model.changed(512, {"pytorch_model.bin": "x"}, {}) is None  # nothing is known against it
        found = streamed(model, [0, 512])
        assert isinstance(found[0], Checkpoint)
        assert re.search("the Hub does not list the files of step 512 .*500", found[512])
        hub.faults = []
        assert isinstance(streamed(served(hub), [512])[512], Checkpoint)


def test_one_shared_shard_and_another_main_are_seen_over_the_wire(served, revisions, tmp_path):
    sharded = revisions["step1000"]
    mixed = write_checkpoint(tmp_path / "mixed", random_module(len(corpus.VOCABULARY), seed=9), tokenizer_of_corpus())
    (mixed / "model.safetensors").unlink()
    random_module(len(corpus.VOCABULARY), seed=9).save_pretrained(mixed, max_shard_size="60KB")
    first = sorted(sharded.glob("model-00001-*"))[0]
    shutil.copy(first, mixed / first.name)
    folders = {"step0": revisions["step0"], "step1000": sharded, "step2000": mixed, "step3000": revisions["step3000"],
               "main": revisions["step512"]}  # fmt: skip
    with Hub({NAME: folders}) as hub:
        model = served(hub)
        assert not hub.fetched()
    assert model.suspect == {
        1000: "shares a weight file with step2000",
        2000: "shares a weight file with step1000",
    }
    assert model.audit.main_is_last is False
    assert 512 in model.audit.missing


def test_a_revision_that_is_gone_between_audit_and_fetch_fails_alone(served, revisions):
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        hub.repositories = {NAME: {k: v for k, v in revisions.items() if k != "step512"}}
        found = streamed(model, [512, 3000])
    assert found[512].startswith(f"{NAME}@step512: 404")
    assert isinstance(found[3000], Checkpoint)


def test_without_main_nothing_is_judged(served, revisions):
    with Hub({NAME: revisions}) as hub:
        hub.faults = [Fault(f"GET revision {Hub.commit(NAME, 'main')}", "status", 500, times=EVER)]
        with pytest.raises(SihError, match=r"@main: .*500.*the last step is compared with it"):
            served(hub)


@pytest.mark.parametrize("where", ["GET /refs", "GET /revision"])
@pytest.mark.parametrize("kind", ["reset", "close", "short", "silent"])
def test_small_requests_outlive_broken_answers(served, revisions, where, kind, monkeypatch):
    monkeypatch.setattr("sih.checkpoints.retries.METADATA_TIMEOUT", 0.3)
    monkeypatch.setattr("sih.checkpoints.revisions.METADATA_TIMEOUT", 0.3)
    with Hub({NAME: revisions}) as hub:
        hub.faults = [fault := Fault(where, kind, times=2, seconds=1.0)]
        assert served(hub).steps == [0, 512, 1000, 2000, 3000]
    assert fault.met == 2


def test_a_hub_that_goes_away_ends_the_sweep_after_three(served, revisions):
    with Hub({NAME: revisions}) as hub:
        model = served(hub)
        hub.faults = [Fault("", "silent", times=EVER)]  # every connection ends without an answer
        found = model.stream([0, 512, 1000, 3000], lambda *_: None)
        for step in (0, 512):
            at, error = next(found)
            assert at == step
            assert "the Hub cannot be reached" in str(error)
        with pytest.raises(SihError, match="out of reach for 3 checkpoints in a row, the last me/model@step1000"):
            next(found)


def test_two_branches_at_one_commit_are_each_there_in_their_turn(served, revisions):
    """Releasing step 0 must not let step 1's files go, which are the same, while step 1 is in use."""
    folders = {"step0": revisions["step0"], "step1": revisions["step0"], "step3000": revisions["step3000"]}
    with Hub({NAME: folders}) as hub:
        hub.merged = {"step1": "step0"}
        model = served(hub, budget=f"{int(1.5 * served_bytes(revisions['step0']))}B")
        for step, checkpoint in model.stream([0, 1, 3000], lambda *_: None):
            time.sleep(0.5)
            assert (checkpoint.folder / "model.safetensors").exists(), step


def test_leaving_lets_go_of_what_was_fetched_ahead(served, revisions):
    with Hub({NAME: revisions}) as hub:
        model = served(hub, budget=f"{int(2.2 * served_bytes(revisions['step0']))}B")
        found = model.stream([0, 512], lambda *_: None)
        next(found)
        time.sleep(0.5)
        found.close()
        assert all(isinstance(c, Checkpoint) for c in streamed(model, [1000, 3000]).values())


def test_offline_keeps_what_is_there_whatever_the_budget(served, revisions, monkeypatch):
    with Hub({NAME: revisions}) as hub:
        streamed(served(hub), [0, 512, 3000])
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        model = served(hub, budget=f"{int(1.2 * served_bytes(revisions['step0']))}B")
        assert all(isinstance(c, Checkpoint) for c in streamed(model, [0, 512, 3000]).values())


def test_what_nothing_links_to_is_cleared_and_dangling_links_too(served, revisions):
    with Hub({NAME: revisions}) as hub:
        model = served(hub, budget=f"{int(1.5 * served_bytes(revisions['step0']))}B")
        folder = streamed(model, [0])[0].folder
        (folder / "model.safetensors").unlink()  # as a process leaves it that dies between the two
        (folder / "config.json").resolve().unlink()
        assert isinstance(streamed(model, [3000])[3000], Checkpoint)


def test_another_repositorys_blob_is_not_ours(served, revisions):
    """The same weights in two repositories are two files on disk."""
    one = served_bytes(revisions["step0"])
    both = {"me/other": {"step0": revisions["step0"]}, NAME: revisions}
    with Hub(both) as hub:
        first = served(hub, "me/other", budget=f"{int(1.5 * one)}B")
        streamed(first, [0])
        with watched(first.cache.hub) as sizes:
            streamed(served(hub, budget=f"{int(1.5 * one)}B"), [0])
    assert max(sizes) <= 1.5 * one


def test_a_wrong_token_is_never_said_and_asks_to_log_in(served, revisions, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    with Hub({NAME: revisions}) as hub:
        hub.faults = [Fault("GET /refs", "status", 401, times=EVER)]
        with pytest.raises(SihError, match="requires a valid token; `hf auth login`") as refused:
            served(hub)
    assert "hf_secret" not in str(refused.value)


# Whole sweeps through the Hub.


@pytest.fixture
def sweeping(tmp_path, monkeypatch):
    """`sweeping(hub, ...)`: a quick configuration of a sweep over that server's repository."""
    monkeypatch.setenv("SIH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    texts = generated_texts(tmp_path)

    def options(hub: Hub, *overrides: str) -> list[str]:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT sets, once, at import
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        return ["model=pythia-14m", f"model.repo={NAME}", "model.layers=2", "model.heads=4", "model.width=32",
                "model.document_start='<end>'", *texts,
                "checkpoints.attempts=2", "checkpoints.first_wait=0.01", *overrides]  # fmt: skip

    return options


def served_audit(hub: Hub, folder: Path):
    options = CheckpointsConfig(disk_budget="1GB", ahead=1, attempts=1, first_wait=0.0, allow_suspect=False)
    return HubModel(HubSeries((NAME,), OWN), folder / "elsewhere", options, Sha256(), endpoint=hub.url).audit.revisions


def test_a_sweep_of_a_small_budget_fetches_and_hashes_each_file_once(
    sweeping, revisions, monkeypatch, capsys, tmp_path
):
    """Never more than two checkpoints on disk. Steps 0 and 1 share their weights; a step without is left out by name."""
    folders = {**revisions, "step1": revisions["step0"]}
    hashed: list[str] = []
    real = hashlib.file_digest

    def counted(handle, algorithm):
        hashed.append(Path(handle.name).resolve().name)
        return real(handle, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    with Hub({NAME: folders}) as hub:
        budget = 2 * max(r.bytes for r in served_audit(hub, tmp_path).values())
        config = composed(*sweeping(hub, "steps=all", f"checkpoints.disk_budget={budget}B"))
        with watched(tmp_path / "cache" / "hub") as sizes:
            assert sweep.run(config) == 1
        assert budget / 2 < max(sizes) <= budget
    run = run_at(config)
    assert all(cells.steps() == [0, 1, 512, 1000, 3000] for cells in run.scores.values())
    refused = "refused, no weights; to measure it anyway: checkpoints.allow_suspect=true"
    assert run.failed() == {2000: dict.fromkeys(run.scores, refused)}
    weights = [p for p in hub.fetched() if p.endswith((".safetensors", ".bin"))]
    assert len(weights) == len(set(weights)) == 3 + len(list(revisions["step1000"].glob("*.safetensors")))
    of_weights = [name for name in hashed if len(name) == 64]  # blobs are named by sha256 where they are LFS files
    assert len(of_weights) == len(set(of_weights)) == len(weights)
    manifest = run.manifest(512)
    assert manifest["weights_sha256"] == {"pytorch_model.bin": sha256_of(revisions["step512"] / "pytorch_model.bin")}
    assert manifest["commit_sha"] == Hub.commit(NAME, "step512")
    assert manifest["suspect"] is None
    assert run.manifest(0)["weights_sha256"] == run.manifest(1)["weights_sha256"]
    assert "Left out by the audit: steps 2000." in capsys.readouterr().out.replace("\n", " ")
    # The same command again has nothing to measure, and answers all the same.
    with Hub({NAME: folders}) as hub:
        assert sweep.run(composed(*sweeping(hub, "steps=all", f"checkpoints.disk_budget={budget}B"))) == 1
    assert not hub.fetched()
    assert "Answer:" in capsys.readouterr().out


def test_a_step_whose_weights_are_anothers_is_refused_and_marked_when_wanted(sweeping, revisions, monkeypatch, capsys):
    folders = {"step0": revisions["step0"], "step512": revisions["step3000"], "step3000": revisions["step3000"],
               "main": revisions["main"]}  # fmt: skip
    with Hub({NAME: folders}) as hub:
        with pytest.raises(SihError, match="the audit convicts every chosen step: 512: the same weights as step3000"):
            sweep.run(composed(*sweeping(hub, "steps=[512]")))
        assert not hub.fetched()
        config = composed(*sweeping(hub, "steps=all", "checkpoints.allow_suspect=true"))
        assert sweep.run(config) == 0
        with pytest.raises(SihError, match="the audit convicts every chosen step"):
            sweep.run(composed(*sweeping(hub, "steps=[512]", "seed=1")))
    assert suspect(run_at(config).manifests()) == {512: "the same weights as step3000"}
    said = " ".join(capsys.readouterr().out.split())
    assert "Measured although the audit convicts them: steps 512" in said
    assert "The same weights under steps 512, 3000" in said


def test_what_was_measured_before_the_audit_convicted_it_is_named(sweeping, revisions, capsys):
    folders = {"step0": revisions["step0"], "step3000": revisions["step3000"], "main": revisions["main"]}
    with Hub({NAME: folders}) as hub:
        assert sweep.run(composed(*sweeping(hub, "steps=all"))) == 0
        folders["step512"], folders["step1000"] = revisions["step0"], revisions["step1000"]
        hub.repositories = {NAME: folders}
        with pytest.raises(
            SihError, match=r"step 0 in .* was measured before the audit convicted it \(the same weights"
        ):
            sweep.run(composed(*sweeping(hub, "steps=all")))
        assert sweep.run(composed(*sweeping(hub, "steps=[0,1000,3000]", "checkpoints.allow_suspect=true"))) == 0


@pytest.mark.slow
def test_ctrl_c_during_a_download_and_the_same_command_again(sweeping, revisions, tmp_path):
    """A process of its own: killed by the user while the second checkpoint drips in."""
    with Hub({NAME: revisions}) as hub:
        env = os.environ | {"HF_ENDPOINT": hub.url, "COLUMNS": "200"}
        command = [sys.executable, "-m", "sih.sweep", *sweeping(hub, "steps=[0,1000,3000]")]
        hub.faults = [Fault(f"GET model.safetensors {Hub.commit(NAME, 'step3000')}", "stall", seconds=20)]
        running = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        blobs = tmp_path / "cache" / "hub" / "models--me--model" / "blobs"
        while not list(blobs.glob("*.incomplete")) or not list(tmp_path.glob("runs/*/few_shot/*/step0001000")):
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
        assert running.returncode == 130
        assert "stopped; what was measured is kept" in said
        assert not list(blobs.glob("*.incomplete"))
        hub.faults = []
        again = subprocess.run(command, env=env, capture_output=True, text=True)
    assert again.returncode == 0
    assert "2 kept, 1 to measure" in again.stdout


@pytest.mark.slow
def test_ctrl_c_during_the_audit_leaves_at_once(sweeping, revisions, tmp_path):
    """While every listing is unanswered; what was read before is kept, and nothing waits for the others' time-out."""
    with Hub({NAME: revisions}) as hub:
        env = os.environ | {"HF_ENDPOINT": hub.url}
        hub.faults = [Fault(f"/revision/{Hub.commit(NAME, f'step{s}')}", "silent", seconds=15) for s in (1000, 3000)]
        running = subprocess.Popen(
            [sys.executable, "-m", "sih.sweep", *sweeping(hub)], env=env, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not all(fault.met for fault in hub.faults):
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = running.communicate(timeout=30)
    assert time.monotonic() - began < 7
    assert running.returncode == 130
    assert "Traceback" not in said


def test_sizes_are_read_and_refused():
    assert bytes_of("60GB") == 60 * 10**9
    assert bytes_of(" 1.5 mb ") == 1_500_000
    with pytest.raises(SihError, match="disk_budget=lots; expected a size such as 60GB"):
        bytes_of("lots")
