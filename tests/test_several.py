"""Several runs together: `python -m sih.correlate model_seeds=...`."""

import json

import pytest
from commands import called

from sih import correlate, sweep


@pytest.mark.slow
def test_the_seeds_that_are_measured_are_read_together(small, tmp_path, monkeypatch):
    """Each by itself, as it would be alone, then all in one table; what is not there is named."""
    monkeypatch.setenv("COLUMNS", "80")
    for seed in (0, 1):
        sweep.run(small(f"model.seed={seed}"))
    options = [f"output={tmp_path / 'runs'}", "emergence.bootstrap=50", "emergence.min_events=5"]
    told = called(correlate.main, *options, "model_seeds=[0,1,2]")
    assert told.returncode == 0, told.stderr
    said = " ".join(told.stdout.split())
    assert "Not measured yet: tiny-seed2" in said
    assert "no model has 6 runs with both onsets" in said
    result = json.loads((tmp_path / "runs/across/tiny/emergence.json").read_text())
    assert {(r["model"], r["model_seed"]) for r in result["series"]} == {("tiny", 0), ("tiny", 1)}
    assert result["not_measured"] == ["tiny-seed2"]
    for pair in result["pairs"]:
        assert (pair["n_runs"], pair["p_seed_perm"]) == (2, None)
    of_one = {r["series"]: r for r in json.loads((tmp_path / "runs/tiny-seed1/emergence.json").read_text())["series"]}
    for row in result["series"]:
        if row["model_seed"] == 1:
            assert row["rise"] == of_one[row["series"]].get("rise")
    nothing = called(correlate.main, *options, "model_seeds=[7]")
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("sih: nothing measured yet for tiny-seed7; run python -m sih.sweep")
