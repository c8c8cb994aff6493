"""The notebook in analysis/, executed cell by cell on a small run."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from conftest import run_at

from sih import sweep

NOTEBOOK = Path(__file__).resolve().parents[1] / "analysis" / "notebook.ipynb"


def test_the_notebook_runs_on_any_run(small, monkeypatch):
    config = small()
    sweep.run(config)
    monkeypatch.setenv("SIH_RUN", str(run_at(config).root))
    plt.close("all")
    names: dict = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 7
    for cell in cells:
        exec("".join(cell["source"]), names)
    (figure,) = map(plt.figure, plt.get_fignums())
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["prefix matching", "relation index, facts"]
    assert all(len(line.get_xdata()) == 5 for ax in figure.axes for line in ax.lines)
    assert set(names["pairs"]["decision"]) == {"unresolved"}
    assert names["run"].answer.startswith("5 checkpoints are too few")
