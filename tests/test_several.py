"""Several runs of the store together: `python -m sih.correlate model_seeds=...`."""

import json
import os
import subprocess
import sys

import pytest
from conftest import SMALL

from sih import sweep


@pytest.mark.slow
def test_the_seeds_that_are_measured_are_read_together(small, small_cache, tmp_path):
    """Each by itself, as it would be alone, then all in one table; what is not there is named."""
    for seed in (0, 1):
        sweep.run(small(f"model.seed={seed}"))
    options = [*SMALL, f"output={tmp_path / 'runs'}", "figures=true"]
    told = subprocess.run(
        [sys.executable, "-m", "sih.correlate", *options, "model_seeds=[0,1,2]"],
        capture_output=True, text=True, env=os.environ | {"SIH_CACHE": str(small_cache), "COLUMNS": "80"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    said = " ".join(told.stdout.split())
    assert "Not measured yet: tiny-seed2" in said
    assert "fewer than four runs of one model have both onsets" in said
    result = json.loads((tmp_path / "runs/across/tiny/emergence.json").read_text())
    assert {(r["model"], r["model_seed"]) for r in result["series"]} == {("tiny", 0), ("tiny", 1)}
    assert result["not_measured"] == ["tiny-seed2"]
    for pair in result["pairs"]:
        assert (pair["n_runs"], pair["p_seed_perm"]) == (2, None)
    (alone,) = (tmp_path / "runs/tiny-seed1").glob("*/emergence.json")
    of_one = {r["series"]: r for r in json.loads(alone.read_text())["series"]}
    for row in result["series"]:
        if row["model_seed"] == 1:
            assert row["rise"] == of_one[row["series"]].get("rise")
    nothing = subprocess.run(
        [sys.executable, "-m", "sih.correlate", *options, "model_seeds=[7]"],
        capture_output=True, text=True, env=os.environ | {"SIH_CACHE": str(small_cache)},
    )  # fmt: skip
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("sih: nothing measured yet of tiny-seed7; run python -m sih.sweep")
