import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL, composed
from wandb_server import Fault, Wandb

from sih import dashboard, publish, sweep
from sih.errors import SihError
from sih.results import locate
from sih.results.trajectories import Trajectories
from sih.tracker import contents


@pytest.fixture
def published(tmp_path, small_cache, monkeypatch):
    """`published(*overrides)`: a configuration that is published offline."""
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    kept = [o for o in SMALL if not o.startswith("tracker")]
    return lambda *overrides: composed(*kept, f"output={tmp_path / 'runs'}", *overrides)


def logged(store):
    """The newest publication's history, by training step."""
    folder = store.root / "wandb" / json.loads((store.root / "publication.json").read_text())["folder"]
    return {int(row["train_step"]): row for row in contents.read_back(folder) if "tokens" in row}


def trajectories(config, store):
    return Trajectories(store, config.emergence, config.icl.loss.headline, config.seed)


def expected(config, store):
    return {row["train_step"]: row for row in contents.headline_scalars(trajectories(config, store))}


def test_the_dashboard_is_the_store(published, capsys):
    config = published()
    sweep.run(config)
    store = locate(config).store
    rows, want = logged(store), expected(config, store)
    assert list(rows) == [0, 1, 2, 4, 8]
    for step, row in want.items():
        assert 8 <= len(row) <= 24
        for key, value in row.items():
            assert float(rows[step][key]) == pytest.approx(value, rel=1e-6)
    said = capsys.readouterr().out
    commands = [line.split() for line in said.splitlines() if line.startswith("  ") and "offline-run" in line]
    assert [c[1:-1] for c in commands] == [["leet", "run"], ["sync"]]
    assert all(Path(c[-1]).is_dir() and shutil.which(c[0]) for c in commands)


@pytest.mark.slow
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
    (newest,) = (store.root / "wandb").glob("offline-run-*")
    assert newest.name == json.loads((store.root / "publication.json").read_text())["folder"]
    assert len(list((store.root / "wandb" / "superseded").iterdir())) == 1


@pytest.mark.slow
def test_publishing_an_unchanged_store_again_does_nothing_and_says_so(published, capsys):
    config = published("steps=[0,8]")
    sweep.run(config)
    store = locate(config).store
    before = (store.root / "publication.json").read_bytes()
    capsys.readouterr()
    assert publish.run(config) == 0
    assert capsys.readouterr().out.startswith("Published already, and nothing has changed since.")
    assert (store.root / "publication.json").read_bytes() == before
    assert publish.run(published("steps=[0,8]", "force=true")) == 0
    assert (store.root / "publication.json").read_bytes() != before


def test_numbers_over_all_heads_are_those_of_the_store(published):
    """Against a loop over the heads' table."""
    config = published("steps=[8]")
    sweep.run(config)
    store = locate(config).store
    row = expected(config, store)[8]
    table = store.table(8, "relation_heads").query("direction == 'forward' and source == 'facts'")
    mean, per_opportunity, rate = [], [], []
    for _, head in table.groupby(["layer", "head"]):
        total = sum(r.relation_index * r.argmax_scored for r in head.itertuples() if r.argmax_scored)
        if head["argmax_scored"].sum():
            mean.append(total / head["argmax_scored"].sum())
        per_opportunity.append(total / head["opportunities"].sum())
        rate.append(head["argmax_events"].sum() / head["opportunities"].sum())
    for name, values in (("mean", mean), ("per opportunity", per_opportunity), ("gate rate", rate)):
        assert row[f"heads/relation_index (facts) {name}"] == pytest.approx(sum(values) / len(values))


@pytest.mark.slow
def test_a_failed_checkpoint_is_seen_on_the_dashboard(published):
    config = published("steps=[0,8]")
    sweep.run(config)
    store = locate(config).store
    store.write_failure(4, "logits are NaN")
    assert publish.run(config) == 0
    folder = store.root / "wandb" / json.loads((store.root / "publication.json").read_text())["folder"]
    rows = contents.read_back(folder)
    assert [int(r["train_step"]) for r in rows if "checkpoints/failed" in r] == [4]
    assert any("failed checkpoints" in key for r in rows for key in r)


def test_a_live_run_is_replaced_by_the_publication(published):
    config = published("steps=[0,4,8]", "tracker.live=true")
    sweep.run(config)
    store = locate(config).store
    (live,) = (store.root / "wandb" / "superseded").iterdir()
    rows = contents.read_back(live)
    assert [int(r["train_step"]) for r in rows] == [0, 4, 8]
    losses = store.table(8, "icl").query("score == 'loss_reduction' and task == 'early_late'")["value"]
    assert float(rows[-1]["live/loss_reduction"]) == pytest.approx(losses.item())
    assert not any(key.startswith("live/") for row in logged(store).values() for key in row)


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


def started_online(options: list[str], url: str, home: Path, key: str = Wandb.key, command: str = "publish"):
    """`python -m sih.publish ... tracker=online`; a process, since the client reads its settings once."""
    env = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": key, "HOME": str(home)}
    env.pop("WANDB_MODE", None)
    line = [sys.executable, "-m", f"sih.{command}", *options, "tracker=online"]
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def online(options: list[str], url: str, home: Path, key: str = Wandb.key, command: str = "publish"):
    """What became of it: exit code, stdout, stderr."""
    process = started_online(options, url, home, key, command)
    out, err = process.communicate()
    assert "Traceback" not in err
    return process.returncode, out, err


def test_online_the_backend_holds_the_store(measured, tmp_path):
    config = composed(*measured)
    store = locate(config).store
    with Wandb() as backend:
        code, said, _ = online(measured, backend.url, tmp_path)
    (run,) = backend.runs.values()
    assert code == 0
    assert said.splitlines() == [f"Dashboard:  {backend.url}/me/sih/runs/{run.name}"]
    assert (run.group, run.job_type, run.tags, run.finished) == ("tiny", "publication", ["current"], True)
    want = expected(config, store)
    rows = {row["train_step"]: row for row in run.history if "tokens" in row}
    assert list(rows) == [0, 8]
    for step, row in want.items():
        assert {k: v for k, v in rows[step].items() if not k.startswith("_")} == pytest.approx(row)
    assert run.config["provenance"]["weights_sha256"]["8"] == store.manifest(8)["weights_sha256"]
    assert run.summary["answer"] == json.loads((store.root / "emergence.json").read_text())["answer"]
    tables = [json.loads(body) for name, body in run.files.items() if "media/table" in name]
    (table,) = [found for found in tables if "relation_index" in found["columns"]]
    (timing,) = [found for found in tables if "t50_step" in found["columns"]]
    assert [row[0] for row in timing["data"]] == json.loads((store.root / "emergence.json").read_text())["headline"]
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


def tags(backend: Wandb) -> list[list[str]]:
    return [run.tags for run in backend.runs.values()]


@pytest.mark.slow
def test_online_current_moves_to_the_newest_and_a_rerun_shows_its_value(measured, tmp_path):
    """Two publications, the second after a checkpoint was measured again with another result."""
    store = locate(composed(*measured)).store
    key = "icl/loss_reduction early_late"
    with Wandb() as backend:
        assert online(measured, backend.url, tmp_path)[0] == 0
        table = store.table(8, "icl_documents")
        kept = (store.root / "step0000008" / "icl_documents.parquet").read_bytes()
        table.loc[table["score"] == "loss_reduction", "value"] += 1.0
        table.to_parquet(store.root / "step0000008" / "icl_documents.parquet")
        assert online(measured, backend.url, tmp_path)[0] == 0
        (store.root / "step0000008" / "icl_documents.parquet").write_bytes(kept)
        assert tags(backend) == [["superseded"], ["current"]]
        old, new = ({r["train_step"]: r for r in run.history if "tokens" in r} for run in backend.runs.values())
        assert new[8][key] == pytest.approx(old[8][key] + 1.0)
        assert new[0][key] == pytest.approx(old[0][key])
        code, said, _ = online([*measured, "force=true"], backend.url, tmp_path)
        assert code == 0
        code, said, _ = online(measured, backend.url, tmp_path)
        assert "nothing has changed since" in said
        assert tags(backend) == [["superseded"], ["superseded"], ["current"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (None, "could not be reached or refused the key"),  # a wrong key: 401
        (Fault("Viewer", 403), "could not be reached or refused the key"),
        (Fault("Viewer", 500), "could not be reached or refused the key"),
        (Fault("Viewer", 0), "could not be reached or refused the key"),
        (Fault("UpsertBucket", 403), "could not be reached or refused"),
        (Fault("UpsertBucket", 429), "could not be reached or refused"),
        (Fault("UpsertBucket", 500), "could not be reached or refused"),
    ],
    ids=["401", "403", "500", "hangs up", "refused 403", "429 for ever", "500 for ever"],
)
def test_online_a_refusal_is_one_error_within_seconds(measured, tmp_path, fault, words):
    short = [*measured, "tracker.init_timeout=5", "tracker.finish_timeout=10"]
    with Wandb(*[fault] if fault else []) as backend:
        started = time.monotonic()
        code, _, err = online(short, backend.url, tmp_path, key=Wandb.key if fault else "x" * 40)
        took = time.monotonic() - started
        assert code == 2
        assert words in err
        assert took < 60
        assert not any("current" in t for t in tags(backend))


@pytest.mark.slow
def test_online_a_single_500_is_waited_out(measured, tmp_path):
    with Wandb(Fault("UpsertBucket", 500, times=1), Fault("file_stream", 500, times=1)) as backend:
        assert online([*measured, "force=true"], backend.url, tmp_path)[0] == 0
        assert tags(backend) == [["current"]]


@pytest.mark.slow
def test_online_a_live_run_is_superseded_also_when_its_sweep_is_killed(measured, tmp_path):
    """The first sweep is killed once its live run is there; the second goes on and publishes."""
    options = [*measured, f"output={tmp_path / 'runs'}", "steps=[0,1,2,4,8]", "tracker.live=true"]
    with Wandb() as backend:
        process = started_online(options, backend.url, tmp_path, command="sweep")
        while not backend.runs:
            time.sleep(0.05)
            assert process.poll() is None
        process.kill()
        process.communicate()
        (killed,) = backend.runs.values()
        assert (killed.job_type, killed.tags) == ("live", ["live"])
        assert online(options, backend.url, tmp_path, command="sweep")[0] == 0
        found = {(run.job_type, *run.tags) for run in backend.runs.values()}
        assert found == {("live", "superseded"), ("publication", "current")}
        (current,) = [run for run in backend.runs.values() if run.tags == ["current"]]
        assert [r["train_step"] for r in current.history if "tokens" in r] == [0, 1, 2, 4, 8]


@pytest.mark.slow
def test_online_a_sweep_without_network_fails_before_it_measures(measured, tmp_path):
    options = [*measured, f"output={tmp_path / 'other'}", "tracker.init_timeout=5"]
    code, _, err = online(options, "http://127.0.0.1:9", tmp_path, command="sweep")
    assert code == 2
    assert "Nothing was measured" in err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["file_stream", "/upload/artifact"])
def test_online_a_connection_lost_on_the_way_is_finished_by_publishing_again(measured, tmp_path, where):
    store = locate(composed(*measured)).store
    with Wandb(Fault(where, 500)) as backend:
        code, _, err = online([*measured, "force=true", "tracker.finish_timeout=8"], backend.url, tmp_path)
        assert code == 2
        assert f"every result is in {store.root}" in err
        assert tags(backend) == [["incomplete"]]
        backend.faults.clear()
        assert online([*measured, "force=true"], backend.url, tmp_path)[0] == 0
        assert tags(backend) == [["incomplete"], ["current"]]


@pytest.mark.slow
def test_online_a_killed_publisher_leaves_nothing_current_and_the_store_whole(measured, tmp_path):
    store = locate(composed(*measured)).store
    before = {f: f.read_bytes() for f in store.root.rglob("*.parquet")}
    with Wandb(Fault("file_stream", 500)) as backend:
        process = started_online([*measured, "force=true"], backend.url, tmp_path)
        while not backend.faults[0].met:
            time.sleep(0.05)
            assert process.poll() is None
        process.kill()
        process.communicate()
        backend.faults.clear()
        assert online([*measured, "force=true"], backend.url, tmp_path)[0] == 0
        assert tags(backend)[-1] == ["current"]
        assert ["current"] not in tags(backend)[:-1]
    assert {f: f.read_bytes() for f in store.root.rglob("*.parquet")} == before


@pytest.mark.slow
def test_online_of_two_at_once_the_second_finds_it_done(measured, tmp_path):
    store = locate(composed(*measured)).store
    (store.root / "publication.json").unlink(missing_ok=True)
    with Wandb() as backend:
        both = [started_online(measured, backend.url, tmp_path) for _ in range(2)]
        said = [p.communicate()[0] for p in both]
        assert [p.returncode for p in both] == [0, 0]
        assert tags(backend) == [["current"]]
        assert sorted("nothing has changed since" in s for s in said) == [False, True]


@pytest.mark.slow
def test_the_dashboard_as_it_is_saved(measured, tmp_path):
    """Of what the server was sent: every plot is over training steps on a log axis; only current runs, by model."""
    store = locate(composed(*measured)).store
    answer = json.loads((store.root / "emergence.json").read_text())["answer"]
    with Wandb() as backend:
        assert online(measured, backend.url, tmp_path)[0] == 0
        code, said, err = online(measured, backend.url, tmp_path, command="dashboard")
        assert (code, err) == (0, "")
        (run,) = backend.runs.values()
        logged = {key for row in run.history for key in row}
    view, report = (json.loads(sent["spec"]) for sent in backend.views)
    assert [line.split()[0] for line in said.splitlines()] == ["View:", "Report:"]
    sections = view["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections][:4] == ["The answer", "Heads", "In-context learning", "Figures"]
    plots = [p["config"] for s in sections for p in s["panels"] if p["viewType"] == "Run History Line Plot"]
    assert len(plots) == 9
    for plot in plots:
        assert (plot["xAxis"], plot["xLogScale"]) == ("train_step", True)
        assert any(re.search(plot["metricRegex"], key) for key in logged), plot["metricRegex"]
    (runs,) = view["section"]["runSets"]
    assert runs["filters"]["filters"][0]["value"] == ["current"]
    assert [g["name"] for g in runs["grouping"]] == ["model.value.name", "model.value.seed"]
    text = json.dumps(report)
    for heading in ("The answer", "Heads", "In-context learning", "Timing", "Provenance"):
        assert f'"text": "{heading}"' in text
    assert json.dumps(answer)[1:-1] in text


def test_a_dashboard_needs_the_server(measured):
    with pytest.raises(SihError, match="a dashboard is saved on the server"):
        dashboard.run(composed(*measured, "tracker=offline"))
