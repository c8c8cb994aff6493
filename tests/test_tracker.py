import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, composed
from wandb_server import Wandb

from sih import publish, sweep, tracker
from sih.config import TrackerConfig
from sih.errors import SihError
from sih.results import locate
from sih.trajectories import Trajectories


@pytest.fixture
def published(tmp_path, small_cache, monkeypatch):
    """`published(*overrides)`: a configuration that is published offline."""
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    kept = [o for o in SMALL if not o.startswith("tracker")]
    return lambda *overrides: composed(*kept, f"output={tmp_path / 'runs'}", *overrides)


def logged(store):
    """The newest publication's history, by training step."""
    folder = store.root / "wandb" / json.loads((store.root / "publication.json").read_text())["folder"]
    return {int(row["train_step"]): row for row in tracker.read_back(folder) if "tokens" in row}


def trajectories(config, store):
    return Trajectories(store, config.emergence, config.icl.loss.headline, config.seed)


def expected(config, store):
    return {row["train_step"]: row for row in tracker.headline_scalars(trajectories(config, store))}


def test_the_dashboard_is_the_store(published, capsys):
    config = published()
    sweep.run(config)
    store = locate(config).store
    rows, want = logged(store), expected(config, store)
    assert list(rows) == [0, 1, 2, 4, 8]
    for step, row in want.items():
        assert 8 <= len(row) <= 16
        for key, value in row.items():
            assert float(rows[step][key]) == pytest.approx(value, rel=1e-6)
    said = capsys.readouterr().out
    commands = [line.split() for line in said.splitlines() if line.startswith("  ") and "offline-run" in line]
    assert [c[1:-1] for c in commands] == [["leet", "run"], ["sync"]]
    assert all(Path(c[-1]).is_dir() and shutil.which(c[0]) for c in commands)


def test_publishing_after_a_rerun_shows_the_new_value_at_that_step(published):
    """The store's value is changed where a rerun would change it; the fresh run shows it and the old one nowhere."""
    config = published("steps=[0,8]")
    sweep.run(config)
    store = locate(config).store
    key = "icl/loss_reduction early_late"
    before = logged(store)[8][key]
    table = store.table(8, "icl_documents")
    table.loc[table["score"] == "loss_reduction", "value"] += 1.0
    table.to_parquet(store.root / "step0000008" / "icl_documents.parquet")
    assert publish.run(config) == 0
    rows = logged(store)
    assert float(rows[8][key]) == pytest.approx(float(before) + 1.0, rel=1e-5)
    assert list(rows) == [0, 8]
    assert len(list((store.root / "wandb").glob("offline-run-*"))) == 2


def test_online_without_a_key_fails_before_anything_is_measured(published, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    config = published("tracker.mode=online")
    with pytest.raises(SihError, match="needs a W&B key: run `wandb login`"):
        sweep.run(config)
    assert not locate(config).store.root.exists()


@pytest.fixture(scope="module")
def measured(tmp_path_factory, small_cache):
    """Overrides of a small sweep that is in the store already, and was never published."""
    kept = [o for o in SMALL if not o.startswith("tracker")]
    options = [*kept, f"output={tmp_path_factory.mktemp('measured') / 'runs'}", "steps=[0,8]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIH_CACHE", str(small_cache))
        sweep.run(composed(*options, "tracker.mode=disabled"))
    return options


def publish_online(options: list[str], backend: Wandb, home: Path, key: str = Wandb.key):
    """`python -m sih.publish ... tracker.mode=online`; a process, since the client reads its settings once."""
    env = os.environ | {"WANDB_BASE_URL": backend.url, "WANDB_API_KEY": key, "HOME": str(home)}
    env.pop("WANDB_MODE", None)
    command = [sys.executable, "-m", "sih.publish", *options, "tracker.mode=online"]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_online_the_backend_holds_the_store(measured, tmp_path):
    config = composed(*measured)
    store = locate(config).store
    with Wandb() as backend:
        said = publish_online(measured, backend, tmp_path)
    (run,) = backend.runs.values()
    assert said.stdout.splitlines() == [f"Dashboard:  {backend.url}/me/sih/runs/{run.name}"]
    assert (run.group, run.job_type, run.tags, run.finished) == ("tiny", "publication", ["current"], True)
    want = expected(config, store)
    rows = {row["train_step"]: row for row in run.history if "tokens" in row}
    assert list(rows) == [0, 8]
    for step, row in want.items():
        assert {k: v for k, v in rows[step].items() if not k.startswith("_")} == pytest.approx(row)
    assert run.config["provenance"]["weights_sha256"]["8"] == store.manifest(8)["weights_sha256"]
    assert run.summary["answer"] == json.loads((store.root / "emergence.json").read_text())["answer"]
    (table,) = [json.loads(body) for name, body in run.files.items() if "media/table" in name]
    relations = store.table(8, "relation_heads").query("direction == 'forward'")
    assert len(table["data"]) == 2 * len(relations)
    step, index, kind = (table["columns"].index(c) for c in ("train_step", "relation_index", "relation"))
    for relation, group in relations.groupby("relation"):
        logged = [row[index] for row in table["data"] if (row[step], row[kind]) == (8, relation)]
        want = group["relation_index"].dropna()
        assert sorted(x for x in logged if x is not None) == pytest.approx(sorted(want))
    images = [Path(name).stem for name in run.files if name.endswith(".png")]
    drawn = [file.stem for file in (store.root / "figures").glob("*.png")]
    assert {"heatmaps", "top_heads", "trajectories"} <= set(drawn)
    assert len(images) == len(drawn)
    assert all(any(image.startswith(name) for image in images) for name in drawn)
    (artifact,) = [a for a in backend.artifacts.values() if a["type"] == "results"]
    assert artifact["committed"]
    for table in ("relation_heads.parquet", "icl.parquet", "manifest.json"):
        file = f"step0000008/{table}"
        assert artifact["files"][file] == (store.root / file).read_bytes()


@pytest.mark.slow
def test_online_with_a_wrong_key_is_one_error(measured, tmp_path):
    with Wandb() as backend:
        said = publish_online(measured, backend, tmp_path, key="x" * 40)
    assert said.returncode == 2
    assert "W&B could not be reached or refused" in said.stderr
    assert "Traceback" not in said.stderr
    assert not backend.runs


def test_a_key_in_the_environment_is_enough(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    tracker.check(TrackerConfig(mode="online", project="p", init_timeout=1))
