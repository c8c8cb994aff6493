"""The default job on the whole embedded series: trained once into the user's cache, as `make run` does."""

import json

import numpy as np
import pytest
from conftest import composed

from sih import sweep
from sih.results import locate
from sih.trajectories import Trajectories


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    config = composed(f"output={tmp_path_factory.mktemp('runs')}", "device=cpu")
    assert sweep.run(config) == 0
    store = locate(config).store
    return store, Trajectories(store, config.emergence, config.icl.loss.headline, config.seed)


def named(data: Trajectories, name: str):
    return next(s for s in data.series if s.name == name)


def clearly_above(series, peak: int, floor: float) -> bool:
    """By five standard errors over documents: more than the best of all checkpoints and relations would by luck."""
    value = series.value_C[peak]
    spread = series.numerator_DC[:, peak] - value * series.denominator_DC[:, peak]
    error = np.sqrt((spread**2).sum()) / series.denominator_DC[:, peak].sum()
    return series.sign * (value - floor) > 5 * error


def test_the_series_has_a_pythia_like_schedule(swept):
    store, _ = swept
    assert store.steps()[:11] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert len(store.steps()) >= 18


@pytest.mark.parametrize("name", ["prefix_matching", "loss_reduction/early_late", "format_accuracy"])
def test_the_dynamics_are_real_and_visible(swept, name):
    _, data = swept
    series = named(data, name)
    peak = int(np.argmax(series.sign * series.value_C))
    assert clearly_above(series, peak, series.value_C[0])
    assert clearly_above(series, peak, series.chance)


def test_a_relation_rises_above_its_start_and_both_nulls_on_the_other_half_of_the_documents(swept):
    _, data = swept
    risen = []
    for series in (s for s in data.series if s.name.startswith("relation_index/")):
        value = np.nan_to_num(series.value_C, nan=-1)
        peak = int(np.argmax(value))
        if clearly_above(series, peak, series.value_C[0]) and clearly_above(series, peak, series.null_C[peak]):
            risen.append(series.name)
    assert risen


def test_the_answer_is_written_and_drawn(swept):
    store, _ = swept
    result = json.loads((store.root / "emergence.json").read_text())
    assert "reaches half of its rise at step" in result["answer"]
    assert "cannot exclude a common cause" in result["answer"]
    rows = {row["series"]: row for row in result["series"]}
    assert rows["prefix_matching"]["emerged"]
    assert rows["loss_reduction/early_late"]["emerged"]
    for name in ("trajectories", "heatmaps", "top_heads"):
        assert (store.root / "figures" / f"{name}.png").stat().st_size > 20_000
        assert (store.root / "figures" / f"{name}.svg").read_text().startswith("<?xml")
