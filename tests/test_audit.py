"""What hashes convict, on cases like those that are known of the suite; and the command over a loopback Hub."""

import csv
import re
import sys

import pytest
from conftest import random_module, write_checkpoint
from hub_server import Hub
from huggingface_hub import constants
from rich.console import Console

from sih import audit as command
from sih.checkpoints import corpus
from sih.checkpoints.audit import Audit, HubFile, Revision, examine
from sih.checkpoints.schedule import PYTHIA_STEPS, in_ranges, tokens_of
from sih.checkpoints.training import tokenizer_of_corpus
from sih.running.audited import show


def whole(step, sha256, *more: str) -> Revision:
    """A revision with one safetensors file, or with one shard for each hash, and an index that all share."""
    hashes = [sha256, *more]
    if len(hashes) == 1:
        files = [HubFile("model.safetensors", 100, sha256, "g")]
    else:
        n = len(hashes)
        files = [HubFile(f"model-{i:05d}-of-{n:05d}.safetensors", 100, h, "g") for i, h in enumerate(hashes, 1)]
        files.append(HubFile("model.safetensors.index.json", 10, None, "index"))
    return revision(step, f"commit{step}", (*files, HubFile("config.json", 1, None, "c")))


def revision(step, commit, files) -> Revision:
    return Revision(step, commit, files, "main" if step is None else f"step{step}", "me/model")


def of(revisions, main, unread=None, repo="me/model", compared=True) -> Audit:
    return examine(Audit((repo,), revisions, main, unread or {}, PYTHIA_STEPS), compared)


def audited(main, **steps):
    """`audited("c", step0="a", step1="a", ...)`; shards as "a b c"."""
    revisions = {int(name[4:]): whole(int(name[4:]), *hashes.split()) for name, hashes in steps.items()}
    return of(revisions, whole(None, *main.split()) if main else None)


def test_a_clean_series_and_equal_first_steps():
    audit = audited("c", step0="a", step1="a", step2="b", step143000="c")
    assert audit.suspect == {}
    assert audit.main_is_last


def test_two_labels_with_the_same_weights_are_both_convicted():
    audit = audited("d", step0="a", step1="a", step512="b", step1000="b", step143000="d")
    assert audit.suspect == {512: "the same weights as step1000", 1000: "the same weights as step512"}


def test_a_third_step_with_the_initial_weights_is_convicted_alone():
    assert audited("c", step0="a", step1="a", step2="a", step143000="c").suspect == {
        2: "the same weights as step0 and step1"
    }


def test_a_step_with_the_final_weights_is_convicted_and_the_last_is_borne_out_by_main():
    assert audited("c", step0="a", step1="a", step512="c", step143000="c").suspect == {
        512: "the same weights as step143000"
    }


def test_without_main_neither_of_two_is_believed():
    assert set(audited(None, step0="a", step1="a", step512="c", step143000="c").suspect) == {512, 143000}


def test_initial_and_final_weights_that_are_one_convict_all():
    assert set(audited("a", step0="a", step1="a", step512="b", step143000="a").suspect) == {0, 1, 143000}


def test_a_main_that_differs_from_the_last_step_is_told_and_convicts_only_who_shares_it():
    audit = audited("x", step0="a", step1="a", step512="x", step1000="b", step143000="c")
    assert audit.main_is_last is False
    assert audit.suspect == {512: "the same weights as main"}


def test_one_shard_of_another_step_convicts(monkeypatch):
    """As reported of pythia-12b: two steps carry the final first shard; the last step is borne out by main."""
    shards = {"step0": "a b c", "step1": "a b c", "step50000": "z e f", "step58000": "z h i", "step143000": "z x y"}
    audit = audited("z x y", **shards)
    assert audit.suspect == {
        50000: "shares a weight file with step58000 and step143000",
        58000: "shares a weight file with step50000 and step143000",
    }


def test_final_weights_under_most_labels(monkeypatch):
    """As reported of pythia-2.8b: main's weights under the early steps, a second set under others and the last."""
    steps = {f"step{s}": "main" for s in (0, 1, 2, 512, 1000)} | {"step54000": "second", "step143000": "second"}
    audit = audited("main", **steps, step66000="own")
    assert set(audit.suspect) == {0, 1, 2, 512, 1000, 54000, 143000}
    assert audit.suspect[0] == "the same weights as step1, step2 and 3 others"
    assert audit.main_is_last is False


def test_weights_that_are_shared_in_the_other_format_convict_too():
    def both(step, safetensors, binary):
        files = [HubFile("pytorch_model.bin", 100, binary, "g")]
        files += [HubFile("model.safetensors", 100, safetensors, "g")] if safetensors else []
        return revision(step, f"c{step}", tuple(files))

    revisions = {0: both(0, "a", "A"), 512: both(512, None, "Z"), 143000: both(143000, "z", "Z")}
    audit = of(revisions, both(None, None, "Z"))
    assert audit.main_is_last
    assert audit.suspect == {512: "the same weights as step143000"}


def test_a_last_step_of_which_main_has_one_shard_is_convicted():
    assert audited("z x", step0="a b", step143000="z y").suspect == {143000: "shares a weight file with main"}


def test_an_unread_last_step_bears_nothing_out():
    revisions = {s: whole(s, f"h{s}") for s in (0, 512)}
    audit = of(revisions, whole(None, "h143000"), {143000: "503"})
    assert audit.main_is_last is None
    assert audit.suspect == {}
    assert audit.steps == [0, 512, 143000]
    convicted = of({**revisions, 1000: whole(1000, "h143000")}, whole(None, "h143000"), {143000: "503"})
    assert convicted.suspect == {1000: "the same weights as main"}


def test_two_groups_of_equal_weights_are_told_apart(capsys):
    audit = audited("e", step0="a", step512="b", step1000="b", step2000="c", step3000="c", step4000="e")
    show(audit, [0], 10**9, Console(width=80))
    said = capsys.readouterr().out
    assert re.search(r"^512, 1000 \(2\) +one set of weights", said, re.MULTILINE)
    assert re.search(r"^2000, 3000 \(2\) +one set of weights", said, re.MULTILINE)


def test_reports_explain_and_never_convict():
    revisions = {s: whole(s, f"h{s}") for s in (0, 50000, 58000, 143000)}
    clean = of(revisions, whole(None, "h143000"), repo="EleutherAI/pythia-12b")
    assert clean.suspect == {}
    assert len(clean.unseen) == 1
    assert "issues/206" in clean.unseen[0]
    revisions |= {50000: whole(50000, "h143000")}
    convicted = of(revisions, whole(None, "h143000"), repo="EleutherAI/pythia-12b")
    assert convicted.explained == {50000: "https://github.com/EleutherAI/pythia/issues/206"}
    assert convicted.unseen == []


def test_weights_without_a_known_hash_and_no_weights_at_all():
    revisions = {
        0: revision(0, "c0", (HubFile("model.safetensors", 1, None, "g"),)),
        512: revision(512, "c1", (HubFile("config.json", 1, None, "g"),)),
        1000: whole(1000, "a"),
    }
    assert of(revisions, None).suspect == {
        0: "the Hub gives no sha256 for its weights",
        512: "no weights",
    }


def test_what_is_fetched_of_a_revision():
    both = revision(
        0,
        "c",
        (
            HubFile("README.md", 5, None, "r"),
            HubFile("config.json", 1, None, "c"),
            HubFile("model-00001-of-00002.safetensors", 10, "a", "g"),
            HubFile("model-00002-of-00002.safetensors", 10, "b", "g"),
            HubFile("model.safetensors.index.json", 2, None, "i"),
            HubFile("pytorch_model.bin", 100, "p", "g"),
            HubFile("tokenizer.json", 3, None, "t"),
        ),
    )
    assert both.format == "safetensors"
    assert both.bytes == 10 + 10 + 2 + 1 + 3


def test_steps_in_words_and_in_tokens():
    assert len(PYTHIA_STEPS) == 154
    assert in_ranges([0, 1, 2, 4, 512, 1000, 3000], PYTHIA_STEPS) == "0-4, 512, 1000, 3000"
    assert in_ranges([5, 7, 9], [1, 5, 7, 9]) == "5-9"
    assert in_ranges([], PYTHIA_STEPS) == ""
    assert tokens_of(3000, 2_097_152) == 6_291_456_000


def test_a_clean_audit_says_so(capsys):
    show(audited("c", step0="a", step1="a", step143000="c"), [0, 1], 10**9, Console(width=80))
    said = " ".join(capsys.readouterr().out.split())
    assert "No two labels share a weight file" in said
    assert "main the weights of step143000" in said


@pytest.mark.parametrize("convicted", [True, False])
def test_the_command_prints_a_screen_and_writes_every_revision(tmp_path, monkeypatch, capsys, convicted):
    folders = {}
    for n, step in enumerate((0, 512, 1000)):
        module = random_module(len(corpus.VOCABULARY), seed=n)
        folders[f"step{step}"] = write_checkpoint(tmp_path / f"step{step}", module, tokenizer_of_corpus())
    if convicted:
        folders["step1"], folders["step1000"] = folders["step0"], folders["step512"]
    folders["main"] = folders["step1000"]
    with Hub({"me/model": folders}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT sets, once, at import
        monkeypatch.setenv("SIH_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("COLUMNS", "80")
        words = ["model=pythia-14m", "model.repo=me/model", f"output={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["sih.audit", *words])
        with pytest.raises(SystemExit) as ended:
            command.main()
    assert not hub.fetched()
    shown = capsys.readouterr()
    assert ended.value.code == (1 if convicted else 0), shown.err
    assert max(map(len, shown.out.splitlines()[:-1])) <= 80
    said = " ".join(shown.out.split())
    assert f"revisions {4 if convicted else 3}, step0 to step1000" in said
    assert "3 safetensors" in said or "4 safetensors" in said
    assert ("512 (1)" in said) == convicted
    assert ("No two labels share a weight file" in said) != convicted
    with open(tmp_path / "pythia-14m" / "audit.csv") as handle:
        rows = {int(row["step"]): row for row in csv.DictReader(handle)}
    assert len(rows) == 154
    assert rows[512]["verdict"] == ("suspect" if convicted else "ok")
    assert rows[1000]["verdict"] == "ok"
    assert rows[143000]["verdict"] == "missing"
    assert rows[0]["weights_sha256"] == hub.hashes(folders["step0"] / "model.safetensors")[0]
