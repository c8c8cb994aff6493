"""Anyone's trajectories: `python -m sih.correlate heads=a.csv icl=b.csv`."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import called
from conftest import composed

from sih import correlate
from sih.emergence.onset import octaves
from sih.emergence.table import PSEUDO, read_trajectories
from sih.errors import SihError

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 8000, 16000]


def rise(middle):
    return 1 / (1 + np.exp(-(octaves(np.array(STEPS)) - middle) / 0.5))


def written(file: Path, name: str, value, **columns) -> Path:
    table = pd.DataFrame({"step": STEPS, "series": name, "value": value} | columns)
    (table.to_parquet if file.suffix == ".parquet" else table.to_csv)(file, index=False)
    return file


def by_document(file: Path, name: str, middle: float, documents: int = 30) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        {"step": s, "series": name, "value": v + rng.normal(0, 0.1), "document": f"d{d}"}
        for d in range(documents)
        for s, v in zip(STEPS, rise(middle), strict=True)
    ]
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_csv(file, index=False)  # in no order
    return file


@pytest.mark.slow
def test_two_tables_are_timed_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_document(tmp_path / "a.csv", "my heads", 6)
    written(tmp_path / "b.parquet", "loss", -rise(10), se=0.02, sign=-1)
    told = called(correlate.main, "heads=a.csv", "icl=b.parquet", "emergence.bootstrap=100")
    assert told.returncode == 0, told.stderr
    result = json.loads((tmp_path / "runs/tables/a-b/emergence.json").read_text())
    (pair,) = result["pairs"]
    assert pair["decision"] == "heads_lead"
    assert pair["lag_oct"] == pytest.approx(4, abs=0.3)
    assert result["resampling"] == {"my heads": "documents", "loss": "no documents: resampled parametrically from se"}
    said = " ".join(told.stdout.split())
    assert "loss: no documents: resampled parametrically from se" in said
    assert said.endswith(f"Answer: {result['answer']}.")
    assert "my heads leads loss by" in said


def test_what_is_known_of_the_uncertainty_is_used(tmp_path):
    files = [
        ("heads", written(tmp_path / "se.csv", "se", rise(6), se=0.03)),
        ("heads", written(tmp_path / "n.csv", "n", rise(6), n=100)),
        ("icl", written(tmp_path / "none.csv", "none", rise(6) + 0.1 * (np.arange(len(STEPS)) % 2))),
    ]
    steps, (se, n, none), notes = read_trajectories(files)
    assert steps == STEPS

    def error_C(trajectory):
        return trajectory.numerator_DC.std(0) / np.sqrt(PSEUDO)

    np.testing.assert_allclose(se.value_C, rise(6), atol=1e-12)
    np.testing.assert_allclose(error_C(se), 0.03)
    np.testing.assert_allclose(error_C(n), np.sqrt(rise(6) * (1 - rise(6)) / 100))
    assert 0.02 < error_C(none)[0] < 0.2
    assert list(notes.values()) == [
        "no documents: resampled parametrically from se",
        "no documents: resampled parametrically, a share of n",
        "no documents and no se: resampled parametrically from the jitter between checkpoints",
    ]
    assert se.pool != n.pool


def test_documents_of_both_tables_are_the_same_by_name(tmp_path):
    files = [(k, by_document(tmp_path / f"{k}.csv", k, 6)) for k in ("heads", "icl")]
    _, (heads, icl), _ = read_trajectories(files)
    assert (heads.pool, heads.documents) == (icl.pool, icl.documents)


def test_missing_checkpoints_and_documents_are_missing(tmp_path):
    table = pd.read_csv(by_document(tmp_path / "a.csv", "s", 6, documents=2))
    table = table[~((table["step"] == 8) | ((table["step"] == 16) & (table["document"] == "d0")))]
    table.to_csv(tmp_path / "a.csv", index=False)
    other = written(tmp_path / "b.csv", "t", rise(8))
    steps, (s, _), _ = read_trajectories([("heads", tmp_path / "a.csv"), ("icl", other)])
    assert np.isnan(s.value_C[steps.index(8)])
    assert s.denominator_DC[:, steps.index(16)].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.drop(columns="series"), "has no column series; expected step, series, value"),
        (lambda t: t.iloc[:0], "has no rows"),
        (lambda t: pd.concat([t, t[:1]]), "series s, step 0 appears twice"),
        (lambda t: t.assign(value="high"), "row 2: value is high; expected a number"),
        (lambda t: t.assign(step=0.5), "row 2: step is 0.5; expected a whole number"),
        (lambda t: t.assign(step=-t["step"]), "steps must not be negative; got -16000"),
        (lambda t: t.assign(sign=2), "sign of s is 2; expected 1 or -1"),
        (lambda t: t.assign(delta=range(len(t))), "delta of s is 0, 1.*expected one number"),
    ],
)
def test_a_broken_table_is_one_clear_error(tmp_path, change, says):
    file = written(tmp_path / "a.csv", "s", rise(6))
    change(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(SihError, match=says):
        read_trajectories([("heads", file)])


def test_two_series_of_one_name_and_no_such_file(tmp_path):
    file = written(tmp_path / "a.csv", "s", rise(6))
    with pytest.raises(SihError, match="series s is in both tables"):
        read_trajectories([("heads", file), ("icl", file)])
    with pytest.raises(SihError, match=r"gone.csv cannot be read as a table"):
        read_trajectories([("heads", tmp_path / "gone.csv")])


def test_one_table_alone_is_refused(tmp_path):
    written(tmp_path / "a.csv", "s", rise(6))
    with pytest.raises(SihError, match=r"icl= is missing; expected two tables, heads=a.csv icl=b.csv"):
        correlate.run(composed(f"own.heads={tmp_path / 'a.csv'}"))
