import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SMALL, composed, run_at
from wandb_server import Fault, Wandb

from sih import dashboard, publish, sweep
from sih.command import READING
from sih.config import folder_of
from sih.emergence.of_run import analysed
from sih.errors import SihError
from sih.results.trajectories import Trajectories
from sih.tracker import contents


@pytest.fixture
def published(tmp_path, small_cache, monkeypatch):
    """`published(*overrides)`: a configuration that is published offline."""
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    kept = [o for o in SMALL if not o.startswith("tracker")]
    return lambda *overrides: composed(*kept, f"output={tmp_path / 'runs'}", *overrides)


def logged(run):
    """The newest publication's history, by training step."""
    folder = run.root / "wandb" / json.loads((run.root / "publication.json").read_text())["folder"]
    return {int(row["train_step"]): row for row in contents.read_back(folder) if "tokens" in row}


def expected(config, run):
    """What the dashboard should show, anew from the tables, by training step."""
    data = Trajectories(run, config.emergence)
    emergence = analysed(data, config.emergence, config.suggest)
    return {row["train_step"]: row for row in contents.headline_scalars(data, emergence)}


def measured_again(cells, step, name, change):
    """What another measurement of a cell leaves, had it found another table; `change` alters its rows."""
    manifest = cells.manifest(step)
    tables = {table: pq.read_table(cells.table_file(step, table)) for table in manifest["tables_sha256"]}
    tables[name] = pa.Table.from_pandas(change(tables[name].to_pandas()), preserve_index=False)
    cells.write(step, tables, manifest)


def higher(rows):
    """Losses by document, with a context gain that is larger by 1."""
    return rows.assign(value=rows["value"] + (rows["score"] == "context_gain"))


def test_the_dashboard_is_the_run(published, capsys):
    config = published()
    sweep.run(config)
    run = run_at(config)
    rows, want = logged(run), expected(config, run)
    assert list(rows) == [0, 1, 2, 4, 8]
    for step, row in want.items():
        assert 8 <= len(row) <= 26
        assert all(re.fullmatch(r"[_a-zA-Z][_a-zA-Z0-9]*", part) for key in row for part in key.split("/"))
        for key, value in row.items():
            assert float(rows[step][key]) == pytest.approx(value, rel=1e-6)
    said = capsys.readouterr().out
    commands = [line.split() for line in said.splitlines() if line.startswith("  ") and "offline-run" in line]
    assert [c[1:-1] for c in commands] == [["leet", "run"], ["sync"]]
    assert all(Path(c[-1]).is_dir() and shutil.which(c[0]) for c in commands)


@pytest.mark.slow
def test_publishing_after_a_rerun_shows_the_new_value_at_that_step(published):
    """The run's value is changed where a rerun would change it; the fresh run shows it and the old one nowhere."""
    config = published("steps=[0,8]")
    sweep.run(config)
    run = run_at(config)
    key = "icl/context_gain"
    before = logged(run)[8][key]
    measured_again(run.scores["loss_reduction"], 8, "loss_documents", higher)
    assert publish.run(config) == 0
    rows = logged(run)
    assert float(rows[8][key]) == pytest.approx(float(before) + 1.0, rel=1e-5)
    assert list(rows) == [0, 8]
    (newest,) = (run.root / "wandb").glob("offline-run-*")
    assert newest.name == json.loads((run.root / "publication.json").read_text())["folder"]
    assert len(list((run.root / "wandb" / "superseded").iterdir())) == 1


@pytest.mark.slow
def test_publishing_an_unchanged_run_again_does_nothing_and_says_so(published, capsys):
    config = published("steps=[0,8]", "figures=true")
    sweep.run(config)
    run = run_at(config)
    before = (run.root / "publication.json").read_bytes()
    capsys.readouterr()
    assert publish.run(config) == 0
    assert capsys.readouterr().out.startswith("Published already, and nothing has changed since.")
    assert (run.root / "publication.json").read_bytes() == before
    assert publish.run(published("steps=[0,8]", "force=true")) == 0
    assert (run.root / "publication.json").read_bytes() != before


@pytest.mark.slow
def test_a_failed_checkpoint_is_seen_on_the_dashboard(published):
    config = published("steps=[0,8]")
    sweep.run(config)
    run = run_at(config)
    run.scores["few_shot"].write_failure(4, "logits are NaN")
    assert publish.run(config) == 0
    folder = run.root / "wandb" / json.loads((run.root / "publication.json").read_text())["folder"]
    rows = contents.read_back(folder)
    assert [int(r["train_step"]) for r in rows if "checkpoints/failed" in r] == [4]
    assert any("failed_checkpoints" in key for r in rows for key in r)


def test_a_live_run_is_replaced_by_the_publication(published):
    config = published("steps=[0,4,8]", "tracker.live=true")
    sweep.run(config)
    run = run_at(config)
    (live,) = (run.root / "wandb" / "superseded").iterdir()
    rows = contents.read_back(live)
    assert [int(r["train_step"]) for r in rows] == [0, 4, 8]
    gain = run.table("loss_reduction", [8]).query("score == 'context_gain'")["value"]
    assert float(rows[-1]["icl/context_gain"]) == pytest.approx(gain.item())
    shown = {key for row in logged(run).values() for key in row}
    assert {key for key in rows[-1] if "/" in key} - {"checkpoints/seconds"} <= shown  # in the same view


def test_online_without_a_key_fails_before_anything_is_measured(published, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    config = published("tracker.mode=online")
    with pytest.raises(SihError, match="needs a W&B key: run `wandb login`"):
        sweep.run(config)
    assert not folder_of(config).exists()


@pytest.fixture(scope="module")
def measured(tmp_path_factory, small_cache):
    """Overrides of a small sweep that is measured already, and was never published."""
    kept = [o for o in SMALL if not o.startswith("tracker")]
    options = [*kept, f"output={tmp_path_factory.mktemp('measured') / 'runs'}", "steps=[0,8]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIH_CACHE", str(small_cache))
        sweep.run(composed(*options, "tracker.mode=disabled"))
    return options


def test_numbers_over_all_heads_are_those_of_the_run(measured):
    """Against a loop over the heads' table."""
    config = composed(*measured)
    run = run_at(config)
    row = expected(config, run)[8]
    table = run.table("relation_heads", [8]).query("direction == 'forward' and source == 'facts'")
    mean, per_opportunity, rate = [], [], []
    for _, head in table.groupby(["layer", "head"]):
        total = sum(r.relation_index * r.argmax_scored for r in head.itertuples() if r.argmax_scored)
        if head["argmax_scored"].sum():
            mean.append(total / head["argmax_scored"].sum())
        per_opportunity.append(total / head["opportunities"].sum())
        rate.append(head["argmax_events"].sum() / head["opportunities"].sum())
    for name, values in (("mean", mean), ("per_opportunity", per_opportunity), ("gate_rate", rate)):
        assert row[f"all_heads/relation_index_facts_{name}"] == pytest.approx(sum(values) / len(values))


def started_online(options: list[str], url: str, home: Path, key: str = Wandb.key, command: str = "publish"):
    """`python -m sih.publish ... tracker=online`; a process, since the client reads its settings once."""
    env = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": key, "HOME": str(home)}
    for name in ("WANDB_MODE", "WANDB_SERVICE"):  # WANDB_SERVICE: the client's helper process that this one started
        env.pop(name, None)
    if command != "sweep":  # which alone looks at what is measured
        read = (*READING, "tracker", "force")
        options = [o for o in options if o.split("=")[0].split(".")[0] in read]
    line = [sys.executable, "-m", f"sih.{command}", *options, "tracker=online"]
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def online(options: list[str], url: str, home: Path, key: str = Wandb.key, command: str = "publish"):
    """What became of it: exit code, stdout, stderr."""
    process = started_online(options, url, home, key, command)
    out, err = process.communicate()
    assert "Traceback" not in err
    return process.returncode, out, err


@pytest.mark.slow
def test_online_the_backend_holds_the_run(measured, tmp_path):
    config = composed(*measured)
    run = run_at(config)
    with Wandb() as backend:
        code, said, _ = online(measured, backend.url, tmp_path)
    (shown,) = backend.runs.values()
    assert code == 0
    assert said.splitlines() == [f"Dashboard:  {backend.url}/me/sih/runs/{shown.name}"]
    assert (shown.group, shown.job_type, shown.tags, shown.finished) == ("tiny", "publication", ["current"], True)
    want = expected(config, run)
    rows = {row["train_step"]: row for row in shown.history if "tokens" in row}
    assert list(rows) == [0, 8]
    for step, row in want.items():
        numbers = {k: v for k, v in rows[step].items() if not k.startswith(("_", "heatmaps/"))}
        assert numbers == pytest.approx(row)
        assert [k for k in rows[step] if k.startswith("heatmaps/")]  # images at their step
    emergence = json.loads((run.root / "emergence.json").read_text())
    for score, cells in run.scores.items():
        assert shown.config["scores"][score]["options"] == cells.setting["options"]
    assert shown.config["provenance"]["settings"] == run.record.settings
    assert shown.config["provenance"]["checkpoints"] == 2
    assert shown.summary["answer"] == emergence["answer"]
    tables = [json.loads(body) for name, body in shown.files.items() if "media/table" in name]
    (table,) = [found for found in tables if "role" in found["columns"]]
    (timing,) = [found for found in tables if "t50_step" in found["columns"]]
    assert [row[0] for row in timing["data"]] == emergence["headline"]
    of_heads = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["head"] for row in of_heads if row["role"] == "chosen"] == [
        role["head"] for role in emergence["roles"] for _ in role["series"]
    ]
    images = [Path(name).stem for name in shown.files if name.endswith(".png") and "/figures/" in name]
    assert len(images) == len(list((run.root / "figures").glob("*.png")))
    drawn = [file.stem for file in (run.root / "figures").glob("*.png")]
    assert {"heatmaps", "top_heads", "trajectories"} <= set(drawn)
    assert all(any(image.startswith(name) for image in images) for name in drawn)
    (artifact,) = [a for a in backend.artifacts.values() if a["type"] == "results"]
    assert artifact["committed"]
    (views,) = [a for a in backend.artifacts.values() if a["type"] == "views"]
    assert views["files"]["emergence.json"] == (run.root / "emergence.json").read_bytes()
    assert artifact["files"]["run.yaml"] == (run.root / "run.yaml").read_bytes()
    for score, name in (
        ("relation_index", "relation_heads.parquet"),
        ("loss_reduction", "loss_reduction.parquet"),
        ("few_shot", "few_shot.parquet"),
        ("few_shot", "manifest.json"),
    ):
        file = f"{run.scores[score].name}/step0000008/{name}"
        assert artifact["files"][file] == (run.root / file).read_bytes()


def tags(backend: Wandb) -> list[list[str]]:
    return [run.tags for run in backend.runs.values()]


@pytest.mark.slow
def test_online_current_moves_to_the_newest_and_a_rerun_shows_its_value(measured, tmp_path):
    """Two publications, the second after a checkpoint was measured again with another result."""
    run = run_at(composed(*measured))
    key = "icl/context_gain"
    with Wandb() as backend:
        assert online(measured, backend.url, tmp_path)[0] == 0
        kept = run.table("loss_documents", [8]).drop(columns="step")
        measured_again(run.scores["loss_reduction"], 8, "loss_documents", higher)
        assert online(measured, backend.url, tmp_path)[0] == 0
        measured_again(run.scores["loss_reduction"], 8, "loss_documents", lambda _: kept)
        assert tags(backend) == [["superseded"], ["current"]]
        old, new = ({r["train_step"]: r for r in shown.history if "tokens" in r} for shown in backend.runs.values())
        assert new[8][key] == pytest.approx(old[8][key] + 1.0)
        assert new[0][key] == pytest.approx(old[0][key])
        for _ in range(2):
            assert online([*measured, "force=true"], backend.url, tmp_path)[0] == 0
            of_results = [a for a in backend.artifacts.values() if a["type"] == "results"]
            assert len(of_results) == 3  # by what was measured: the second time, nothing is uploaded anew
        _, said, _ = online(measured, backend.url, tmp_path)
        assert "nothing has changed since" in said
        assert tags(backend) == [*[["superseded"]] * 3, ["current"]]


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
    run = run_at(composed(*measured))
    with Wandb(Fault(where, 500)) as backend:
        code, _, err = online([*measured, "force=true", "tracker.finish_timeout=8"], backend.url, tmp_path)
        assert code == 2
        assert f"every result is in {run.root}" in err
        assert tags(backend) == [["incomplete"]]
        backend.faults.clear()
        assert online([*measured, "force=true"], backend.url, tmp_path)[0] == 0
        assert tags(backend) == [["incomplete"], ["current"]]


@pytest.mark.slow
def test_online_a_killed_publisher_leaves_nothing_current_and_the_run_whole(measured, tmp_path):
    run = run_at(composed(*measured))
    before = {f: f.read_bytes() for f in run.root.rglob("*.parquet")}
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
    assert {f: f.read_bytes() for f in run.root.rglob("*.parquet")} == before


@pytest.mark.slow
def test_online_of_two_at_once_the_second_finds_it_done(measured, tmp_path):
    run = run_at(composed(*measured))
    (run.root / "publication.json").unlink(missing_ok=True)
    with Wandb() as backend:
        both = [started_online(measured, backend.url, tmp_path) for _ in range(2)]
        said = [p.communicate()[0] for p in both]
        assert [p.returncode for p in both] == [0, 0]
        assert tags(backend) == [["current"]]
        assert sorted("nothing has changed since" in s for s in said) == [False, True]


@pytest.mark.slow
def test_the_dashboard_as_it_is_saved(measured, tmp_path):
    """Of what the server was sent: every plot is over training steps on a log axis; only current runs, by model."""
    run = run_at(composed(*measured))
    answer = json.loads((run.root / "emergence.json").read_text())["answer"]
    with Wandb() as backend:
        assert online(measured, backend.url, tmp_path)[0] == 0
        code, said, err = online(measured, backend.url, tmp_path, command="dashboard")
        assert (code, err) == (0, "")
        (run,) = backend.runs.values()
        logged = {key for row in run.history for key in row}
    view, report = (json.loads(sent["spec"]) for sent in backend.views)
    assert [line.split()[0] for line in said.splitlines()] == ["View:", "Report:"]
    sections = view["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections][:4] == ["The answer", "Heads over training", "Heads", "In-context learning"]
    plots = [p["config"] for s in sections for p in s["panels"] if p["viewType"] == "Run History Line Plot"]
    assert len(plots) == 11
    for plot in plots:
        assert (plot["xAxis"], plot["xLogScale"]) == ("tokens_plus_1_step", True)  # models together, so in tokens
        assert plot["xAxis"] in logged
        assert any(re.search(plot["metricRegex"], key) for key in logged), plot["metricRegex"]
    (runs,) = view["section"]["runSets"]
    assert runs["filters"]["filters"][0]["value"] == ["current", "live"]
    assert runs["grouping"] == []  # runs of different configurations are never averaged
    text = json.dumps(report)
    assert "train_step_plus_1" in text  # one model, so in steps
    assert "tokens_plus_1_step" not in text
    for heading in ("The answer", "Heads", "In-context learning", "Timing", "Provenance"):
        assert f'"text": "{heading}"' in text
    assert json.dumps(answer)[1:-1] in text


def test_a_dashboard_needs_the_server(measured):
    with pytest.raises(SihError, match="a dashboard is saved on the server"):
        dashboard.run(composed(*measured, "tracker=offline"))
