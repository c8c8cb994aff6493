"""A score of one's own, as the README shows it, through every command; and what is refused in one."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_at

import sih
from sih import correlate, publish, report, sweep
from sih.errors import SihError
from sih.tracker.contents import read_back

ROOT = Path(__file__).resolve().parents[1]


def example() -> str:
    """The README's code block."""
    (code,) = re.findall(r'```python\n("""my_scores\.py.*?)```', (ROOT / "README.md").read_text(), re.DOTALL)
    return code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes my_scores.py where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path / "mine")
    (tmp_path / "mine").mkdir()

    def write(text: str) -> None:
        (tmp_path / "mine" / "my_scores.py").write_text(text)
        sys.modules.pop("my_scores", None)

    yield write
    sys.modules.pop("my_scores", None)


ENTROPY = ["+scores.entropy._target_=my_scores.AttentionEntropy", "+scores.entropy.length=16"]


def test_the_readme_shows_one_of_at_most_40_lines_and_every_command_takes_it(small, package, capsys):
    code = example()
    assert len(code.splitlines()) <= 40
    package(code)
    sweep.run(small())
    before = {p: p.stat().st_mtime_ns for p in run_at(small()).root.glob("*/*/step*/*")}
    config = small(*ENTROPY, "tracker.mode=offline", "figures=true")
    assert sweep.run(config) == 0
    run = run_at(config)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "the other scores' results stay"
    assert list(run.scores)[-1] == "entropy"
    assert run.scores["entropy"].steps() == run.steps()
    assert run.scores["entropy"].setting["options"] == {"sequences": 8, "length": 16}
    table = run.table("entropy")
    assert len(table) == 8 * 2 * 2 * len(run.steps())  # sequences, layers, heads
    result = json.loads((run.root / "emergence.json").read_text())
    (row,) = [r for r in result["series"] if r["series"] == "attention_entropy"]
    chosen = [tuple(map(int, re.findall(r"\d+", head))) for head in row["heads"]]
    drawn = table.set_index(["layer", "head"]).loc[chosen].reset_index()
    halves = drawn.groupby(["step", "document"])["nats"].mean().unstack("step")
    assert halves.min().min() <= row["value"][0] <= halves.max().max()
    assert "attention_entropy" in result["headline"]
    capsys.readouterr()
    assert correlate.run(config) == report.run(config) == publish.run(config) == 0
    said = capsys.readouterr().out
    assert "attention_entropy" in said
    assert "attention entropy" in (run.root / "report.html").read_text()
    (folder,) = (run.root / "wandb").glob("offline-run-*")
    logged = [r for r in read_back(folder) if "all_heads/attention_entropy_mean" in r]
    means = [float(m) for m in table.groupby("step")["nats"].mean()]
    assert [float(r["all_heads/attention_entropy_mean"]) for r in logged] == pytest.approx(means)


def test_its_results_are_read_where_the_package_is_not(small, package, tmp_path):
    package(example())
    config = small("scores=[induction]", *ENTROPY, "steps=[0,8]")
    sweep.run(config)
    (tmp_path / "mine" / "my_scores.py").unlink()
    sys.modules.pop("my_scores", None)
    opened = sih.open(run_at(config).root)
    of_induction = {"prefix_matching", "previous_token", "duplicate_token", "copying"}
    assert set(opened.series["series"]) == {*of_induction, "attention_entropy"}
    assert isinstance(opened.table("entropy", [8]), pd.DataFrame)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("    version = 1\n", "", "has no version; a score is a dataclass with version, tables, draw, measure"),
        ("    def series(", "    def serie(", "has no series; a score is a dataclass"),
        ('"nats": float(nats)', '"bits": float(nats)', "the table entropy without the column nats that it promises"),
        ('{"entropy": pa.Table', '{"other": pa.Table', "returned no table entropy; it returned other"),
        ('"heads", "entropy", "nats", "nats"', '"heads", "lost", "nats", "nats"',
         "offers the series attention_entropy, which reads the table lost; the score writes only entropy"),
        ('"heads", "entropy", "nats", "nats"', '"heads", "entropy", "bits", "nats"',
         "offers the series attention_entropy, which reads the column bits"),
        ('"attention_entropy", "attention entropy", "heads"', '"prefix_matching", "attention entropy", "heads"',
         "the scores induction and entropy both offer a series prefix_matching"),
        ("@dataclass\n", "", "is not a dataclass"),
        ("class AttentionEntropy", "class Another", "cannot be imported"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_it_is_one_clear_error_and_nothing_is_lost(small, package, before, after, says):
    code = example()
    assert before in code
    package(code.replace(before, after))
    sweep.run(small("scores=[induction]", "steps=[0]"))
    kept = {p: p.read_bytes() for p in run_at(small("scores=[induction]")).root.glob("induction/*/step*/*")}
    assert kept
    with pytest.raises(SihError, match=says):
        sweep.run(small("scores=[induction]", "steps=[0]", *ENTROPY))
    assert {p: p.read_bytes() for p in kept} == kept


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["+scores.entropy._target_=nowhere.Score"], r"nowhere\.Score cannot be imported.*installed, or that lies"),
        (["+scores.entropy._target_=Score"], "cannot be imported"),
        (["+scores.entropy.length=3"], r"scores\.entropy has no _target_"),
        ([*ENTROPY, "+scores.entropy.lenght=3"], r"scores\.entropy\.lenght: no such option; did you mean length"),
    ],
)
def test_what_is_wrong_in_how_it_is_named(small, package, options, says):
    package(example())
    with pytest.raises(SihError, match=says):
        sweep.run(small("scores=[induction]", *options))
