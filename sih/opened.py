"""A run in a notebook: its tables, series, onsets and lags as DataFrames. `sih.open(folder)` makes one."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sih import CONF
from sih.config import EmergenceConfig
from sih.results.run import Run
from sih.running.views import Views

if TYPE_CHECKING:
    import pandas as pd

_OF_SERIES = ("value", "low", "high", "null")


class OpenedRun:
    """The results for one model, read-only: nothing is written, fetched or measured, and torch is not imported.

    Args:
        folder: a run's folder, such as runs/pythia-410m; a copy from another machine will do.

    Raises:
        SihError: the folder is not a run, or has another version's layout.
    """

    def __init__(self, folder: str | Path) -> None:
        self._run = Run.open(Path(folder))

    def __repr__(self) -> str:
        return f"<run {self.name}: {len(self.steps)} checkpoints of {self.model}, {', '.join(self._run.scores)}>"

    @property
    def name(self) -> str:
        """The run's name, which is also its folder's name."""
        return self._run.name

    @property
    def model(self) -> str:
        """The model's name, with its seed."""
        return self._run.model

    @property
    def steps(self) -> list[int]:
        """The training steps that have a result, increasing."""
        return self._run.steps()

    @property
    def tables(self) -> dict[str, str]:
        """The name of every table, and the score that wrote it."""
        return self._run.tables()

    @property
    def damaged(self) -> dict[str, str]:
        """Files that could not be read so far, and why; what they held is left out of every answer."""
        return dict(self._run.damaged)

    def table(
        self, name: str, steps: Iterable[int] | None = None, columns: Iterable[str] | None = None
    ) -> "pd.DataFrame":
        """One table, with a column `step`.

        Args:
            name: one of `tables`.
            steps: only these training steps; all of them when None.
            columns: only these columns; all of them when None.

        Raises:
            SihError: there is no such table, or it has no readable file.
        """
        return self._run.table(name, steps, columns)

    def manifest(self, step: int, score: str | None = None) -> dict[str, Any]:
        """A result's own record: sha256 of the weights, texts, versions, seconds. Raises SihError."""
        return self._run.manifest(step, score)

    @property
    def answer(self) -> str:
        """The sentence that a sweep ends with."""
        return str(self._emergence["answer"])

    @cached_property
    def series(self) -> "pd.DataFrame":
        """Every series over training, one row per series and step.

        Columns: series, label, kind (heads or icl), unit, step, value, low and high (95 % over documents), null (the
        largest null) and chance. NaN where a checkpoint has no value, or where a series has no null or no chance.
        """
        import pandas as pd

        rows = [
            {
                "series": row["series"], "label": row["label"], "kind": row["kind"], "unit": row["unit"], "step": step,
                **{name: None if row[name] is None else row[name][c] for name in _OF_SERIES}, "chance": row["chance"],
            }
            for row in self._emergence["series"]
            for c, step in enumerate(self._emergence["steps"])
        ]  # fmt: skip
        return pd.DataFrame(rows).astype(dict.fromkeys((*_OF_SERIES, "chance"), float))

    @cached_property
    def onsets(self) -> "pd.DataFrame":
        """One row per series: whether it emerged, its half-rise in octaves and steps, three intervals, flags.

        The columns are those of emergence.csv; a series that did not emerge has NaN.
        """
        import pandas as pd

        rows = [{k: v for k, v in row.items() if k not in _OF_SERIES} for row in self._emergence["series"]]
        return pd.DataFrame(rows).set_index("series")

    @cached_property
    def lags(self) -> "pd.DataFrame":
        """One row per pair of a head series and an in-context-learning series: lag, intervals, decision, association.

        Lags are in octaves; positive means heads first. The columns are those of emergence_pairs.csv.
        """
        import pandas as pd

        return pd.DataFrame(self._emergence["pairs"])

    @cached_property
    def heads(self) -> "pd.DataFrame":
        """The heads of the headline series: layer, number and the series that chose them.

        `value` and `null` (the largest null) are those of the last checkpoint.
        """
        import pandas as pd

        return pd.DataFrame(self._emergence["roles"], columns=["head", "layer", "number", "series", "value", "null"])

    @cached_property
    def _emergence(self) -> dict[str, Any]:
        """emergence.json if it matches these results, else the same computed with the default options."""
        options = EmergenceConfig(**yaml.safe_load((CONF / "emergence" / "default.yaml").read_text(encoding="utf-8")))
        suggest = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["suggest"]
        return Views(self._run, options, suggest).read_only()
