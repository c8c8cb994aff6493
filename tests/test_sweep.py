"""Whole sweeps over small series: resume, rerun, refuse, fail and go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SMALL, composed, generated_texts, random_module, run_at, write_checkpoint
from safetensors.torch import load_file, save_file

from sih import correlate, figures, sweep
from sih.checkpoints import corpus
from sih.checkpoints.files import sha256_of
from sih.checkpoints.training import tokenizer_of_corpus
from sih.config import folder_of
from sih.errors import SihError
from sih.results.cells import folder_name, key_of
from sih.results.run import Run


def contents(root: Path) -> dict[str, bytes]:
    """Every measured byte: all files of the cells."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.glob("*/*/step*/*"))}


def tables(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if name.endswith(".parquet")}


def columns(file: Path) -> list[str]:
    return pq.read_schema(file).names


def test_layout_and_manifest(small):
    config = small("figures=true")
    assert sweep.run(config) == 0
    run = run_at(config)
    assert run.root.name == "tiny"
    assert run.steps() == [0, 1, 2, 4, 8]
    assert {p.name for p in run.root.iterdir() if not p.name.startswith(".")} == {
        "run.yaml", "induction", "relation_index", "loss_reduction", "few_shot",
        "emergence.json", "emergence.csv", "emergence_pairs.csv", "figures", "report.html", "views.json",
    }  # fmt: skip
    cells = run.scores["relation_index"]
    assert {p.name for p in cells.root.iterdir()} == {
        "setting.yaml", "series.json", "examples.jsonl", "opportunities.csv", "left_out.csv",
        *(folder_name(step) for step in run.steps()),
    }  # fmt: skip
    assert set(columns(cells.table_file(4, "relation_heads"))) == {
        "layer", "head", "source", "relation", "direction", "opportunities", "self_opportunities", "argmax_events",
        "argmax_scored", "relation_index", "relation_index_per_opportunity", "ren_events", "ren_scored",
        "relation_index_ren", "own_events", "own_scored", "relation_index_own", "strict_events", "strict_scored",
        "relation_index_strict",
        *(f"null_{n}{what}" for n in ("fixed", "random", "matched") for what in ("", "_difference", "_scored")),
    }  # fmt: skip
    assert columns(run.scores["induction"].table_file(4, "induction_heads")) == [
        "layer", "head", "prefix_matching_score", "copying_score", "previous_token_score",
        "duplicate_token_score", "first_token_share",
    ]  # fmt: skip
    for score in ("loss_reduction", "few_shot"):
        found = columns(run.scores[score].table_file(4, score))
        assert found == ["score", "task", "shots", "n", "value", "ci_low", "ci_high", "chance"]
    manifest = cells.manifest(4)
    (weights,) = manifest["weights_sha256"].values()
    cache = Path(os.environ["SIH_CACHE"])
    (_,) = [p for p in (cache / "tiny").iterdir() if sha256_of(p / "step4" / "model.safetensors") == weights]
    assert manifest["tokens"] == 4 * 1536
    assert manifest["revision"] == "step4"
    assert (manifest["score"], manifest["key"]) == ("relation_index", cells.root.name)
    assert key_of(cells.setting) == cells.root.name
    assert manifest["shape"].items() >= {"layers": 2, "heads": 2}.items()
    assert manifest["shape"]["parameters"] > 1000
    assert manifest["matmul_precision"] == "highest"  # no TF32
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["seconds"]) == {"load", "measure"}
    hashes = {name: sha256_of(cells.table_file(4, name)) for name in manifest["tables_sha256"]}
    assert manifest["tables_sha256"] == hashes
    examples = [json.loads(line) for line in (cells.root / "examples.jsonl").read_text().splitlines()]
    assert set(examples[0]) == {"document", "source", "token_ids", "triplets"}
    assert set(examples[0]["triplets"][0]) == {"relation", "subject", "object"}
    episodes = (run.scores["few_shot"].root / "episodes.jsonl").read_text().splitlines()
    keys = {"task", "episode", "token_ids", "asked", "gold_token_ids", "label_token_ids"}
    assert set(json.loads(episodes[0])) == keys


@pytest.mark.parametrize(("start", "why"), [("'<nope>'", "the tokenizer has no <nope>"),
                                            ("null", "model.document_start is null")])  # fmt: skip
def test_without_a_document_start_it_is_measured_all_the_same_and_said(small, capsys, start, why):
    config = small("steps=[8]", "scores=[induction]", f"model.document_start={start}")
    assert sweep.run(config) == 0
    assert f"Texts begin without a document start: {why}" in capsys.readouterr().out
    description = run_at(config).descriptions()["induction"]
    assert description["facts"]["begins"] is False


def test_documents_add_up_to_the_heads_table(small):
    """What is kept for resampling gives the published scores again, without the model."""
    config = small("steps=[8]")
    sweep.run(config)
    run = run_at(config)
    heads = run.table("relation_heads", [8]).set_index(["source", "relation", "direction", "layer", "head"])
    sums = run.table("relation_documents", [8]).groupby(heads.index.names, observed=True).sum(numeric_only=True)
    both = heads.join(sums, suffixes=("", "_documents")).dropna(subset=["argmax_sum"])
    assert len(both) > 10
    assert (both["argmax_scored"] == both["argmax_scored_documents"]).all()
    scored = both[both["argmax_scored"] > 0]
    np.testing.assert_allclose(scored["argmax_sum"] / scored["argmax_scored"], scored["relation_index"], rtol=1e-6)
    paired = both[both["null_random_scored"] > 0]
    difference = (paired["null_random_object_sum"] - paired["null_random_sum"]) / paired["null_random_scored"]
    np.testing.assert_allclose(difference, paired["null_random_difference"], atol=1e-6)
    undefined = heads[heads["argmax_scored"] == 0]
    assert undefined["relation_index"].isna().all()
    sequences = run.table("induction_documents", [8]).groupby(["layer", "head"])["prefix_matching_score"].mean()
    published = run.table("induction_heads", [8]).set_index(["layer", "head"])["prefix_matching_score"]
    np.testing.assert_allclose(sequences, published, rtol=1e-6)


def test_variants_best_heads_and_shots_to_the_format_agree_with_the_other_tables(small):
    config = small("steps=[8]")
    sweep.run(config)
    run = run_at(config)
    key = ["source", "relation", "direction", "layer", "head"]
    heads = run.table("relation_heads", [8]).set_index(key).sort_index()
    variants = run.table("relation_variants", [8])
    assert len(variants) == len(heads) * 3 * 6
    assert (variants["events"] == variants["scored"] + variants["undefined"]).all()
    for gate, name in (("argmax", "relation_index"), ("strict", "relation_index_strict")):
        chosen = (variants["variant"] == "current") & (variants["gate"] == gate)
        rows = variants[chosen & (variants["tau"].isna() | (variants["tau"] == 2.2))]
        np.testing.assert_array_equal(rows.set_index(key).sort_index()["relation_index"], heads[name])
    argmax = variants.query("gate == 'argmax'").groupby(key)["events"].nunique()
    assert (argmax == 1).all()  # the gate does not know what the OV circuit reads
    best = run.table("relation_triplets", [8])
    counts = best.groupby(["source", "relation", "direction"])[["triplets", "triplets_null_random"]].sum()
    examples = [
        json.loads(line) for line in (run.scores["relation_index"].root / "examples.jsonl").read_text().splitlines()
    ]
    wanted = Counter((e["source"], t["relation"]) for e in examples for t in e["triplets"])
    assert {(s, r): n for (s, r, d), n in counts["triplets"].items() if d == "forward"} == wanted
    assert (counts["triplets"] == counts["triplets_null_random"]).all()
    icl = run.table("few_shot", [8])
    by_task = icl.query("score == 'format_accuracy' and not task.str.endswith('classes') and shots.notna()").groupby(
        "task"
    )
    for task, rows in by_task:
        reached = rows.loc[rows["value"] >= 0.8, "shots"]
        (found,) = icl.loc[(icl["score"] == "shots_to_format") & (icl["task"] == task), "value"]
        assert (np.isnan(found) and reached.empty) or found == reached.min()


def test_a_second_sweep_keeps_what_is_done_and_another_folder_gets_the_same_bytes(small, tmp_path, capsys):
    config = small()
    sweep.run(config)
    root = folder_of(config)
    before = contents(root)
    sweep.run(config)
    assert "5 kept, 0 to measure" in capsys.readouterr().out.replace("\n", " ")
    assert contents(root) == before
    again = small(f"output={tmp_path / 'again'}")
    sweep.run(again)
    assert tables(folder_of(again)) == tables(root)


@pytest.mark.parametrize("scores", [None, ["few_shot"], ["induction", "loss_reduction"]], ids=str)
def test_force_measures_exactly_the_chosen_cells_again(small, scores):
    config = small()
    sweep.run(config)
    run = run_at(config)
    before = contents(run.root)
    stamps = {p: p.stat().st_mtime_ns for p in run.root.glob("*/*/step*/*")}
    chosen = [f"scores=[{','.join(scores)}]"] if scores else []
    assert sweep.run(small("steps=[4]", "force=true", *chosen)) == 0
    after = contents(run.root)
    assert tables(run.root) == {k: v for k, v in before.items() if k.endswith(".parquet")}
    changed = {str(p.relative_to(run.root)) for p, t in stamps.items() if p.stat().st_mtime_ns != t}
    mine = scores or list(run.scores)
    wanted = {name for name in before if "/step0000004/" in name and name.split("/")[0] in mine}
    assert changed == wanted
    assert {k: v for k, v in after.items() if k not in wanted} == {k: v for k, v in before.items() if k not in wanted}
    assert set(run_at(config).scores) == set(run.scores), "scores that were not chosen are still shown"
    for score in mine:
        cells = run.scores[score]
        (old,) = (cells.root / "history").iterdir()
        assert old.read_bytes() == before[f"{cells.name}/step0000004/manifest.json"]


def test_correlate_and_figures_work_from_the_store_alone(small, capsys):
    """Without the sweep: the table, the files and the figures come back the same, bytes included."""
    config = small("figures=true")
    with pytest.raises(SihError, match=r"tiny: no such run\. Measure first with python -m sih\.sweep"):
        correlate.run(config)
    sweep.run(config)
    root = folder_of(config)
    derived = [root / "emergence.json", root / "emergence.csv", *sorted((root / "figures").iterdir())]
    before = [file.read_bytes() for file in derived]
    for file in derived:
        file.unlink()
    capsys.readouterr()
    assert correlate.run(config) == figures.run(config) == 0
    said = capsys.readouterr().out
    assert "Answer: 5 checkpoints are too few to time an onset" in said
    assert said.startswith("Written: ")  # the answer comes last
    assert max(map(len, said.split("Answer:")[0].splitlines()[1:])) <= 80
    assert [file.read_bytes() for file in derived] == before
    assert correlate.run(config) == figures.run(config) == 0
    said = capsys.readouterr().out
    assert said.startswith("Unchanged: ")
    assert "Unchanged since they were drawn:" in said
    with pytest.raises(SihError, match="other: no such run; runs there: tiny"):
        correlate.run(small("name=other"))


def test_other_settings_go_elsewhere(small):
    first, second = small("steps=[0]"), small("steps=[0]", "scores.relation_index.tau=3")
    assert sweep.run(first) == sweep.run(second) == 0
    keys = {p.name for p in (folder_of(first) / "relation_index").iterdir()}
    assert len(keys) == 2
    assert run_at(first).record.settings["relation_index"] in keys
    assert [len(list((folder_of(first) / name).iterdir())) for name in ("induction", "few_shot")] == [1, 1]


def local_series(folder: Path, steps=(0, 4, 16)) -> Path:
    for n, step in enumerate(steps):
        write_checkpoint(folder / f"step{step}", random_module(len(corpus.VOCABULARY), seed=n), tokenizer_of_corpus())
    return folder


@pytest.fixture
def local(small, tmp_path):
    """A folder of random checkpoints in the generated vocabulary, measured on its own language's texts."""
    folder = local_series(tmp_path / "my-series")
    options = ["model=local", f"model.path={folder}", *generated_texts(tmp_path)]
    return folder, lambda *overrides: composed(*options, *overrides)


def test_any_folder_of_checkpoints(local):
    _, config = local
    assert sweep.run(config()) == 0
    run = run_at(config())
    assert run.name == run.model == "my-series"
    assert run.steps() == [0, 4, 16]
    assert set(run.table("relation_heads", [4])["relation"]) == {"subject", "object", "modifier"}


def test_weights_that_changed_under_a_kept_result_are_refused(local):
    folder, config = local
    sweep.run(config())
    shutil.copy(folder / "step0" / "model.safetensors", folder / "step4" / "model.safetensors")
    with pytest.raises(SihError, match=r"step 4 .* was measured on other weights.*steps=\[4\] force=true"):
        sweep.run(config())
    assert sweep.run(config("steps=[4]", "force=true")) == 0
    assert sweep.run(config()) == 0


def test_the_same_weights_copied_again_are_still_the_same(local):
    folder, config = local
    sweep.run(config("steps=[0]"))
    os.utime(folder / "step0" / "model.safetensors", ns=(1, 1))
    assert sweep.run(config("steps=[0]")) == 0


def test_failed_checkpoints_are_recorded_and_the_sweep_goes_on(local, capsys):
    folder, config = local
    weights = load_file(folder / "step4" / "model.safetensors")
    save_file({k: v * torch.nan for k, v in weights.items()}, folder / "step4" / "model.safetensors", {"format": "pt"})
    (folder / "step0" / "model.safetensors").write_bytes(b"broken")
    assert sweep.run(config()) == 1
    run = run_at(config())
    assert run.steps() == [16]
    failed = run.failed()
    assert {score for reasons in failed.values() for score in reasons} == set(run.scores)
    assert all("NaN or infinite" in reason for reason in failed[4].values())
    assert all("is half-written" in reason for reason in failed[0].values())
    assert "step 4 failed:" in capsys.readouterr().out
    save_file(weights, folder / "step4" / "model.safetensors", {"format": "pt"})
    assert sweep.run(config()) == 1
    assert run.steps() == [4, 16]
    assert set(run.failed()) == {0}


def test_the_same_weights_under_two_steps_are_said(local, capsys):
    folder, config = local
    shutil.copy(folder / "step4" / "model.safetensors", folder / "step16" / "model.safetensors")
    assert sweep.run(config()) == 0
    root = folder_of(config())
    assert json.loads((root / "emergence.json").read_text())["equal_weights"] == [[4, 16]]
    assert "The same weights under steps 4, 16" in capsys.readouterr().out.replace("\n", " ")


def test_another_tokenizer_at_one_checkpoint_fails_that_checkpoint(local, pythia_tokenizer_file):
    folder, config = local
    (folder / "step4" / "tokenizer.json").write_bytes(pythia_tokenizer_file.read_bytes())
    assert sweep.run(config()) == 1
    run = run_at(config())
    assert all("its tokenizer differs from" in reason for reason in run.failed()[4].values())
    with pytest.raises(SihError, match="no checkpoint could be measured"):
        sweep.run(config("steps=[4]", f"output={folder / 'runs'}"))
    failed = run_at(config(f"output={folder / 'runs'}")).failed()
    assert all("50277 ids, the weights 150 embedding rows" in reason for reason in failed[4].values())


def test_a_folder_without_checkpoints_and_steps_that_do_not_exist(local, tmp_path):
    _, config = local
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        SihError, match=r"no checkpoint folders; none of its 0 folders matches model\.revisions=\(\?:step"
    ):
        sweep.run(config(f"model.path={tmp_path / 'empty'}"))
    with pytest.raises(SihError, match="step 5: no such checkpoint; nearest to 5: 0, 4, 16"):
        sweep.run(config("steps=[5]"))


def test_no_usable_triplets(local, tmp_path):
    _, config = local
    (tmp_path / "bank.conllu").write_text("1\tfox\t_\t_\t_\t_\t0\troot\t_\t_\n\n")
    with pytest.raises(SihError, match="no usable relation triplets are left"):
        sweep.run(config())


def test_inputs_that_other_code_would_draw_are_refused(small):
    config = small("steps=[0]")
    sweep.run(config)
    file = run_at(config).scores["relation_index"].root / "examples.jsonl"
    file.write_text(file.read_text().replace("facts", "FACTS"))
    with pytest.raises(SihError, match=r"examples\.jsonl differs"):
        sweep.run(small("steps=[0,1]"))


def command(tmp_path, *overrides):
    return [sys.executable, "-m", "sih.sweep", *SMALL, f"output={tmp_path / 'runs'}", *overrides]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(signal.SIGKILL, id="kill"),
        pytest.param(signal.SIGINT, id="ctrl-c", marks=pytest.mark.slow),  # test_hub sends one during a download too
    ],
)
def test_a_killed_sweep_resumes_with_the_checkpoint_it_was_in(small, tmp_path, sent):
    config = small()
    root = folder_of(config)
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 1 measured"):
                os.kill(process.pid, sent)
                break
        _, said = process.communicate()
    done = Run.open(root).steps()
    assert done[:2] == [0, 1]
    assert 8 not in done
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert "what was measured is kept" in said
        assert "Traceback" not in said
    before = {p: p.stat().st_mtime_ns for p in root.glob("*/*/step*/*")}
    assert sweep.run(config) == 0
    assert Run.open(root).steps() == [0, 1, 2, 4, 8]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    undisturbed = small(f"output={tmp_path / 'undisturbed'}")
    sweep.run(undisturbed)
    assert tables(root) == tables(folder_of(undisturbed))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model=pythia-71m"], "pythia-70m"),
        (
            ["relations.per_relatoin=2"],
            "sih: relations.per_relatoin: no such option; did you mean relations.per_relation",
        ),
        (["steps=[3]"], "sih: step 3: no such checkpoint; nearest to 3: 0, 1, 2, 4"),
    ],
    ids=["model", "key", "step"],
)
def test_the_command_line_says_what_is_wrong_in_one_clear_error(small, tmp_path, overrides, says, monkeypatch, capsys):
    small()
    monkeypatch.setattr(sys, "argv", ["sweep", *SMALL, f"output={tmp_path / 'runs'}", *overrides])
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    assert ended.value.code not in (0, None)
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_several_settings_in_one_command_are_each_swept(tmp_path, monkeypatch, capsys):
    """Both are refused, each with its own sentence: an error in one does not end the others."""
    monkeypatch.setattr(sys, "argv", ["sweep", "-m", "dtype=float16,float64", f"output={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert [n for n in ("float16", "float64") if f"sih: dtype={n}" in said] == ["float16", "float64"]
    assert "Traceback" not in said


def test_out_of_memory_halves_the_batch_and_goes_on(small, monkeypatch):
    """A device that holds 300 tokens in a pass: the same scores, to rounding, in smaller batches."""
    from sih.models.model import Model

    config = small("steps=[0,8]")
    sweep.run(config)
    run = run_at(config)
    want = {name: run.table(name, [8]) for name in ("relation_heads", "induction_heads", "loss_reduction", "few_shot")}
    real, sizes = Model.hidden, []

    def hidden(self, ids_BT, observe=None):
        sizes.append(ids_BT.numel())
        if ids_BT.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, ids_BT, observe)

    monkeypatch.setattr(Model, "hidden", hidden)
    assert sweep.run(small("steps=[0,8]", "force=true")) == 0
    assert [run.manifest(step)["batch_tokens"] for step in (0, 8)] == [256, 256]
    assert sum(size > 300 for size in sizes) == 2  # 1024 and 512 were tried, once
    for name, table in want.items():
        numbers = table.select_dtypes("number")
        again = run.table(name, [8]).select_dtypes("number")
        np.testing.assert_allclose(again.to_numpy(), numbers.to_numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("Unable to allocate 75 KiB")], ids=type
)
@pytest.mark.parametrize(("fits", "reason"), [(16, "with 256 tokens in a pass"), (0, "with a few tokens in a pass")])
def test_out_of_memory_even_in_small_batches_fails_that_checkpoint(small, monkeypatch, error, fits, reason):
    from sih.models.model import Model

    real = Model.hidden

    def hidden(self, ids_BT, observe=None):
        if ids_BT.numel() > fits:
            raise error
        return real(self, ids_BT, observe)

    config = small("steps=[0,8]")
    monkeypatch.setattr(Model, "hidden", hidden)
    with pytest.raises(SihError, match="no checkpoint could be measured"):
        sweep.run(config)
    assert f"out of memory {reason}" in run_at(config).failed()[8]["induction"]


def test_a_read_only_output_folder(small, tmp_path):
    config = small("steps=[0]")
    (tmp_path / "runs").write_text("a file, so nothing can be written below it")
    with pytest.raises(SihError, match="cannot be written"):
        sweep.run(config)


def test_a_folder_name_sorts_by_step():
    assert [folder_name(s) for s in (0, 512, 143000)] == ["step0000000", "step0000512", "step0143000"]
