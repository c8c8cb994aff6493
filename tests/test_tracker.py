import json
import shutil
from pathlib import Path

import pytest
from conftest import SMALL, composed

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


def expected(config, store):
    data = Trajectories(store, config.emergence, config.icl.loss.headline, config.seed)
    return {row["train_step"]: row for row in tracker.headline_scalars(data)}


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


def test_a_key_in_the_environment_is_enough(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    tracker.check(TrackerConfig(mode="online", project="p", init_timeout=1))
