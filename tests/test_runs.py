"""Results by score: what is measured again, what is shared, what a copied folder is good for, and what is refused."""

import json
import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest
from conftest import SMALL, composed, result_tables, run_at

import sih
from sih import correlate, dashboard, figures, publish, report, status, sweep
from sih.checkpoints.local import LocalFolder
from sih.config import folder_of
from sih.errors import CheckpointError, SihError
from sih.models import loading
from sih.results.cells import Cells
from sih.results.run import LAYOUT, Run
from sih.running.survey import survey
from sih.scores import few_shot


def stamps(run: Run) -> dict:
    return {p: p.stat().st_mtime_ns for p in run.root.glob("*/*/step*/*")}


@pytest.fixture
def fetched(monkeypatch):
    """The steps whose files were handed out, in order."""
    steps, real = [], LocalFolder.stream

    def stream(self, wanted, waiting, needless=None):
        for step, checkpoint in real(self, wanted, waiting, needless):
            if checkpoint is not None:
                steps.append(step)
            yield step, checkpoint

    monkeypatch.setattr(LocalFolder, "stream", stream)
    return steps


def keys(config) -> dict[str, str]:
    """The key of every chosen score's setting, without measuring anything."""
    from rich.console import Console

    return survey(config, Console(quiet=True)).run.record.settings


ALL = {"induction", "relation_index", "loss_reduction", "few_shot"}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("steps=[0,1]", set()),
        ("force=true", set()),
        ("device=cpu", set()),
        ("batch_tokens=64", set()),
        ("emergence.bootstrap=10", set()),
        ("launcher=slurm", set()),
        ("scores.induction.smallest_rise=0.2", set()),
        ("scores.few_shot.smallest_margin_rise=0.5", set()),
        ("scores.induction.length=9", {"induction"}),
        ("scores.relation_index.tau=2.7", {"relation_index"}),
        ("relations.per_relation=7", {"relation_index"}),
        ("icl.loss.documents=9", {"loss_reduction"}),
        ("icl.few_shot.shots_from=1", {"few_shot"}),
        ("icl.few_shot.episodes=9", {"few_shot"}),
        ("icl.few_shot.shots=9", {"few_shot"}),
        ("icl.few_shot.tasks.binary_pet_job.labels=[two,three]", {"few_shot"}),
        ("seed=1", ALL),
        ("dtype=bfloat16", ALL),
        ("model.seed=1", ALL),
        ("model.train.width=32", ALL),
    ],
)
def test_a_key_stands_for_all_that_its_score_depends_on_and_nothing_else(small, override, changed):
    before, after = keys(small()), keys(small(override))
    assert {score for score in ALL if before[score] != after[score]} == changed


def test_the_key_holds_the_texts_contents_and_not_where_they_lie(small, tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    a, b, c = (keys(small(f"icl.loss.texts={tmp_path / name}.jsonl")) for name in "abc")
    assert a == b
    assert {score for score in ALL if a[score] != c[score]} == {"loss_reduction"}


def test_a_score_that_is_added_is_all_that_is_measured(small, fetched, capsys):
    first = small("scores=[induction,few_shot]")
    assert sweep.run(first) == 0
    kept, before = stamps(run_at(first)), result_tables(run_at(first))
    fetched.clear()
    assert sweep.run(small()) == 0
    assert fetched == [0, 1, 2, 4, 8]
    run = run_at(small())
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert set(run.scores) == ALL
    for score in ("loss_reduction", "relation_index"):
        assert run.scores[score].steps() == [0, 1, 2, 4, 8]
    after = result_tables(run)
    assert {name: after[name] for name in before if "emergence" not in name} == {
        name: data for name, data in before.items() if "emergence" not in name
    }
    said = " ".join(capsys.readouterr().out.split())
    assert "5 to measure (relation_index at 5, loss_reduction at 5)" in said


def test_a_checkpoint_of_which_nothing_is_missing_is_not_fetched(small, fetched, monkeypatch):
    sweep.run(small("steps=[0,1]"))
    fetched.clear()
    sweep.run(small("steps=[0,1,2]"))
    assert fetched == [2]
    fetched.clear()
    monkeypatch.setattr(loading, "load", lambda *args: pytest.fail("a model was loaded"))
    assert sweep.run(small("steps=[0,1,2]")) == 0
    assert fetched == []


def test_the_bar_of_a_sweep_that_goes_on_knows_what_a_checkpoint_took(small, monkeypatch):
    paces = []

    def noted(self, task, **fields):
        if "pace" in fields:
            paces.append(fields["pace"])

    monkeypatch.setattr("sih.running.loop.Progress.update", noted)
    sweep.run(small("steps=[0,1]"))
    assert paces == [None]
    sweep.run(small("steps=[0,1,2]"))
    seconds = [[m["seconds"] for m in run_at(small()).manifests()[step].values()] for step in (0, 1)]
    took = [max(s["load"] for s in of_step) + sum(s["measure"] for s in of_step) for of_step in seconds]
    assert paces == [None, pytest.approx(np.mean(took))]


def test_one_changed_option_leaves_the_others_in_use_and_the_first_setting_comes_back(small, fetched):
    sweep.run(small("steps=[0,8]"))
    first = run_at(small()).record.settings
    kept = stamps(run_at(small()))
    assert sweep.run(small("steps=[0,8]", "scores.induction.length=9")) == 0
    second = run_at(small()).record.settings
    assert {score for score in ALL if first[score] != second[score]} == {"induction"}
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    fetched.clear()
    assert sweep.run(small("steps=[0,8]")) == 0
    assert fetched == []
    assert run_at(small()).record.settings == first


def test_a_run_of_another_name_links_what_is_measured_already(small, fetched):
    sweep.run(small())
    fetched.clear()
    config = small("name=again", "scores.induction.length=9")
    assert sweep.run(config) == 0
    one, two = run_at(small()), run_at(config)
    assert two.root.name == "again"
    assert fetched == [0, 1, 2, 4, 8]  # for induction alone
    for score in ALL - {"induction"}:
        for step in one.steps():
            folders = [run.scores[score].root / f"step{step:07d}" for run in (one, two)]
            names = [sorted(p.name for p in folder.iterdir()) for folder in folders]
            assert names[0] == names[1]
            assert all(os.path.samefile(folders[0] / n, folders[1] / n) for n in names[0])
    assert sweep.run(small("name=again", "scores.induction.length=9", "steps=[8]", "force=true")) == 0
    cells = [run.scores["few_shot"] for run in (one, two)]
    assert cells[0].manifest(8) != cells[1].manifest(8), "measuring one again leaves the other as it was"


def test_another_model_under_the_same_name_is_refused(small, tmp_path):
    sweep.run(small("name=mine", "steps=[0]", "scores=[induction]"))
    with pytest.raises(SihError, match=r"mine is a run of tiny, not of tiny-seed1; choose another name= or output="):
        sweep.run(small("name=mine", "model.seed=1", "steps=[0]", "scores=[induction]"))


def test_a_score_that_fails_leaves_the_others_results(small, monkeypatch, capsys):
    real = few_shot.answer

    def answer(model, asked, batch_tokens):
        if answer.calls == 2:
            answer.calls += 1
            raise CheckpointError("few-shot logits are NaN or infinite")
        answer.calls += 1
        return real(model, asked, batch_tokens)

    answer.calls = 0
    monkeypatch.setattr(few_shot, "answer", answer)
    config = small()
    assert sweep.run(config) == 1
    run = run_at(config)
    assert run.failed() == {2: {"few_shot": "few-shot logits are NaN or infinite"}}
    assert {score: cells.steps() for score, cells in run.scores.items()} == {
        score: [0, 1, 4, 8] if score == "few_shot" else [0, 1, 2, 4, 8] for score in run.scores
    }
    said = capsys.readouterr().out.replace("\n", " ")
    assert "step 2 failed: few_shot: few-shot logits are NaN or infinite" in said
    table = {row["series"]: row for row in json.loads((run.root / "emergence.json").read_text())["series"]}
    assert table["format_gained/cycle_fruit_month_pet_job"]["value"][2] is None
    assert table["loss_reduction/early_late"]["value"][2] is not None
    kept = stamps(run)
    assert status.run(config) == 1
    assert "few_shot 4" in capsys.readouterr().out
    assert sweep.run(config) == 0  # which measures that cell, and it alone
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert run.failed() == {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_cache):
    """A finished run's folder, moved away from where it was made."""
    folder = tmp_path_factory.mktemp("finished")
    steps = "steps=[0,1,2,4,8]"
    config = composed(*SMALL, f"output={folder / 'runs'}", "figures=true", "tracker.mode=offline", steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIH_CACHE", str(small_cache))
        sweep.run(config)
    return folder_of(config).rename(folder / "moved")


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """A finished run's folder on "another machine": nothing else is there, and nothing can be trained or fetched."""
    shutil.copytree(finished, tmp_path / "elsewhere" / "mine")
    monkeypatch.setenv("SIH_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setattr(loading, "load", lambda *args: pytest.fail("a model was loaded"))
    return tmp_path / "elsewhere" / "mine"


@pytest.mark.parametrize("how", ["run={}", "output={.parent} name={.name}"])
def test_a_run_folder_is_enough_for_every_command_that_reads(copied, how, tmp_path, capsys):
    options = [part.format(copied) for part in how.split(" ")] if "name=" in how else [how.format(copied)]
    config = composed("model=pythia-70m", *options) if "run=" in how else composed(*options)
    before = result_tables(Run.open(copied))
    for name in ("emergence.json", "views.json", "report.html"):
        (copied / name).unlink()
    assert correlate.run(config) == figures.run(config) == report.run(config) == status.run(config) == 0
    assert publish.run(config) == 0
    with pytest.raises(SihError, match="a dashboard is saved on the server"):
        dashboard.run(config)
    after = result_tables(Run.open(copied))
    assert {k: v for k, v in after.items() if "emergence" not in k} == {
        k: v for k, v in before.items() if "emergence" not in k
    }
    assert (copied / "report.html").stat().st_size > 100_000
    assert not (tmp_path / "no cache").exists()
    said = capsys.readouterr().out
    assert "5 checkpoints are too few" in said
    assert "done       5  0-8" in said


def test_steps_are_honoured_by_those_who_read(copied, capsys):
    assert correlate.run(composed(f"run={copied}", "steps=[0,8]")) == 0
    assert json.loads((copied / "emergence.json").read_text())["steps"] == [0, 8]
    with pytest.raises(SihError, match="step 3: no such checkpoint"):
        correlate.run(composed(f"run={copied}", "steps=[3]"))


def test_a_damaged_table_is_named_and_the_others_are_shown(copied, capsys):
    run = Run.open(copied)
    file = run.scores["few_shot"].table_file(4, "few_shot_documents")
    file.write_bytes(file.read_bytes()[:100])
    assert correlate.run(composed(f"run={copied}")) == 0
    name = f"{run.scores['few_shot'].name}/step0000004/few_shot_documents.parquet"
    result = json.loads((copied / "emergence.json").read_text())
    assert list(result["damaged"]) == [name]
    rows = {row["series"]: row for row in result["series"]}
    assert rows["format_gained/cycle_fruit_month_pet_job"]["value"][3] is None
    assert rows["prefix_matching"]["value"][3] is not None
    assert name in capsys.readouterr().out.replace("\n", "")
    report.run(composed(f"run={copied}"))
    assert name in (copied / "report.html").read_text()
    opened = sih.open(copied)
    assert len(opened.table("few_shot_documents")["step"].unique()) == 4
    assert list(opened.damaged) == [name]


def test_rows_that_no_series_wants_are_not_read(copied):
    """Tables are written in groups of rows; those without a wanted value are skipped, and no wanted row is."""
    kind = np.repeat(["a", "b", "c"], [70_000, 70_000, 10])
    table = pa.table({"kind": pa.array(kind).dictionary_encode(), "number": np.arange(len(kind))})
    cells = Cells(copied / "mine" / "1")
    cells.begin({}, {})
    cells.write(0, {"mine": table}, {})
    run, file = Run.open(copied), cells.table_file(0, "mine")
    for wanted in (["a"], ["b"], ["c"], ["a", "c"], ["z"]):
        found = run.part(file, ["kind", "number"], {"kind": wanted, "no such column": ["x"]}).to_pandas()
        mine = found.loc[found["kind"].isin(wanted), "number"]
        assert list(mine) == list(np.flatnonzero(np.isin(kind, wanted)))
        groups = {int(at) // 2**16 for at in np.flatnonzero(np.isin(kind, wanted))}  # that hold a wanted row
        assert len(found) == sum(min(2**16, len(kind) - g * 2**16) for g in groups)
    assert run.part(file).num_rows == len(kind)


def test_what_is_no_run(tmp_path, copied):
    for folder, says in (
        (tmp_path / "nothing", "nothing: no such run"),
        (tmp_path, r"is not a run: it has no run\.yaml; expected a folder such as runs/pythia-410m"),
    ):
        with pytest.raises(SihError, match=says):
            correlate.run(composed(f"run={folder}"))
    old = tmp_path / "old" / "tiny"
    (old / "c0c13328d84b").mkdir(parents=True)
    (old / "c0c13328d84b" / "config.yaml").write_text("seed: 0\n")
    for folder in (old, old / "c0c13328d84b"):
        with pytest.raises(SihError, match=r"layout 1, written by sih 0\.1\.0; this version reads layout 2"):
            correlate.run(composed(f"run={folder}"))
    record = copied / "run.yaml"
    record.write_text(record.read_text().replace(f"layout: {LAYOUT}", "layout: 3").replace("sih: ", "sih: 9"))
    with pytest.raises(SihError, match=r"has layout 3, written by sih 9"):
        correlate.run(composed(f"run={copied}"))
    record.write_text("nonsense: [")
    with pytest.raises(SihError, match=r"run\.yaml cannot be read as a run's record"):
        correlate.run(composed(f"run={copied}"))


def called(main, monkeypatch, capsys, *words) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sih", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_status_without_a_model_lists_the_runs(small, tmp_path, monkeypatch, capsys):
    sweep.run(small("steps=[0,1]", "scores=[induction]"))
    sweep.run(small("steps=[0]", "scores=[induction]", "name=readable"))
    capsys.readouterr()
    code, out, _ = called(status.main, monkeypatch, capsys, f"output={tmp_path / 'runs'}")
    assert code == 0
    assert [line.split()[:5] for line in out.splitlines()[1:]] == [
        ["readable", "tiny", "1", "of", "1"],
        ["tiny", "tiny", "2", "of", "2"],
    ]
    code, out, _ = called(status.main, monkeypatch, capsys, f"output={tmp_path / 'none'}")
    assert code == 1
    assert "No runs in" in out


@pytest.mark.parametrize(
    ("main", "words", "says"),
    [
        (sweep.main, ["stps=log"], "sih: stps: no such option; did you mean steps"),
        (sweep.main, ["scores.induction.lenght=3"], "did you mean scores.induction.length"),
        (sweep.main, ["run=runs/tiny"], "run= names a run to read"),
        (sweep.main, ["scores=[few_shot]", "scores.induction.length=3"], "induction is not among the chosen scores"),
        (sweep.main, ["scores=[indution]"], "scores=[indution]: no such score; did you mean induction"),
        (sweep.main, ["scores=[]"], "no score is chosen"),
        (sweep.main, ["scores=[induction,induction]"], "induction is named twice"),
        (sweep.main, ["+scores.induction._target_=a.B"], "sih has a score of this name; choose another name for yours"),
        (correlate.main, ["relations.per_relation=3"], "this command does not use it; it reads run, name, output"),
        (correlate.main, ["model=pythia-70m", "device=cpu"], "device: this command does not use it"),
        (correlate.main, ["seed=1"], "seed: this command does not use it"),
        (correlate.main, ["own.heads=a.csv", "seed=1"], "icl= is missing; expected two tables"),
        (publish.main, ["icl=generated"], "icl: this command does not use it"),
        (figures.main, ["force=true"], "force: this command does not use it"),
        (correlate.main, ["run=x", "name=y"], "run= and name= both name the folder of a run"),
        (sweep.main, ["name=a/b"], "name=a/b: expected letters"),
        (sweep.main, ["model=_pythia"], "Could not find 'model/_pythia'"),
    ],
)
def test_options_that_do_not_exist_or_are_not_read_are_refused(main, words, says, monkeypatch, capsys):
    code, _, err = called(main, monkeypatch, capsys, *words)
    assert code not in (0, None)
    assert says in err.replace("\n", " ")
    assert "Traceback" not in err


def test_an_unknown_score_is_answered_with_the_list(monkeypatch, capsys):
    _, _, err = called(sweep.main, monkeypatch, capsys, "scores=[indution]")
    for score in ALL:
        assert score in err


def test_base_options_are_no_choices_and_not_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sih", "--help"])
    with pytest.raises(SystemExit):
        sweep.main()
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("model:", "launcher:"))]
    assert len(listed) == 2
    assert "_" not in "".join(listed).replace("_target_", "")


def test_sih_open_gives_every_table_and_series_without_torch(copied):
    """In a process of its own, since this one has imported torch."""
    import subprocess

    code = f"""
import sih, sys
run = sih.open({str(copied)!r})
tables = {{name: run.table(name) for name in run.tables}}
assert all(len(t) and set(t["step"]) == {{0, 1, 2, 4, 8}} for t in tables.values())
assert set(run.table("induction_heads", [0, 4], ["layer"])) == {{"layer", "step"}}
assert list(run.series.columns)[:4] == ["series", "label", "kind", "unit"]
assert (run.series.dropna()["low"] <= run.series.dropna()["high"]).all()
assert "t50_step" in run.onsets or "flags" in run.onsets
assert set(run.lags["decision"]) == {{"unresolved"}}
assert len(run.heads) and run.answer
assert not [m for m in sys.modules if m.split(".")[0] in ("torch", "transformers", "wandb", "matplotlib")]
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
