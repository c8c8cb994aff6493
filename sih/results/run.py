"""A run: everything that was measured on one model, in one self-contained folder.

runs/pythia-410m/                 the model's name, or the one that name= gave it
  run.yaml                        the model, its checkpoints, and which setting of each score the run shows
  relation_index/4f0c9b1d2e3a/    cells of a score with one setting, see cells.py
  emergence.json figures/ report.html publication.json      views of the cells

Settings that run.yaml does not name stay beside the others, and are used again when a sweep asks for them.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sih.errors import SihError
from sih.results.cells import Cells, write_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

LAYOUT = 2
RECORD = "run.yaml"


@dataclass
class Record:
    """run.yaml: the model, its checkpoints, and the setting of each score that the run shows.

    `settings`: the key of each score's setting. `offered`: the steps that the model has. `steps`: those that its sweeps
    chose. `weights`: where the weights come from, which is part of every key. `refused`: the steps of `offered` that
    the audit convicts. `only`: the steps at which a score is measured, for those that are not measured at all of them.
    """

    model: dict[str, Any]
    weights: str
    tokenizer: str
    seed: int
    dtype: str
    offered: list[int]
    steps: list[int]
    settings: dict[str, str]
    sih: str
    refused: list[int] = field(default_factory=list)
    layout: int = LAYOUT
    only: dict[str, list[int]] = field(default_factory=dict)

    def wants(self, score: str, step: int) -> bool:
        """Whether a score is to be measured at a step."""
        return score not in self.only or step in self.only[score]


@dataclass
class Run:
    """A run's folder, to read and to write. `damaged` names files that could not be read, with the reason."""

    root: Path
    record: Record
    damaged: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path) -> "Run":
        """Open the run in `root`. Raises SihError when there is none, or it has another version's layout."""
        file = root / RECORD
        if not file.is_file():
            raise SihError(_no_run(root))
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
            if found["layout"] != LAYOUT:
                raise SihError(
                    f"{root} has layout {found['layout']}, written by sih {found['sih']}; this version reads layout "
                    f"{LAYOUT}. Read it with that version, or measure again"
                )
            return cls(root, Record(**found))
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise SihError(f"{file} cannot be read as a run's record ({str(error).splitlines()[0]})") from None

    def write_record(self) -> None:
        """Write run.yaml, unless it already says the same."""
        text = yaml.safe_dump(asdict(self.record), sort_keys=False, width=120, default_flow_style=None)
        file = self.root / RECORD
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            self.write_text(RECORD, text)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.name

    @property
    def model(self) -> str:
        """The model's name, with its seed."""
        return str(self.record.model["name"])

    @property
    def scores(self) -> dict[str, Cells]:
        """The cells that the run shows, by score."""
        return {name: self.cells(name, key) for name, key in self.record.settings.items()}

    def cells(self, score: str, key: str) -> Cells:
        """The cells of any setting, shown or not."""
        return Cells(self.root / score / key)

    def steps(self) -> list[int]:
        """The steps at which some score has a result, in increasing order."""
        return sorted({step for cells in self.scores.values() for step in cells.steps()})

    def failed(self) -> dict[int, dict[str, str]]:
        """Why the cells that were tried but have no result failed, by step and score."""
        found: dict[int, dict[str, str]] = {}
        for score, cells in self.scores.items():
            for step, reason in cells.failed().items():
                found.setdefault(step, {})[score] = reason
        return dict(sorted(found.items()))

    def descriptions(self) -> dict[str, dict[str, Any]]:
        """What each score's tables hold, for the scores that have measured something."""
        found = {}
        for score, cells in self.scores.items():
            try:
                description = cells.description()
            except ValueError as error:
                self.damaged[f"{cells.name}/series.json"] = str(error)
                continue
            if description is not None:
                found[score] = description
        return found

    def tables(self) -> dict[str, str]:
        """The name of every table, and the score that wrote it."""
        return {table: score for score, found in self.descriptions().items() for table in found["tables"]}

    def table(
        self, name: str, steps: Iterable[int] | None = None, columns: Iterable[str] | None = None
    ) -> "pd.DataFrame":
        """One table over all steps, or the given ones, with a column `step`; all or some of its columns.

        A file that cannot be read is left out, and named in `damaged`.

        Raises:
            SihError: no such table, or no step has it.
        """
        import pyarrow as pa

        known = self.tables()
        if name not in known:
            raise SihError(f"{self.root} has no table {name}; it has {', '.join(known) or 'none yet'}")
        cells = self.scores[known[name]]
        chosen = cells.steps() if steps is None else steps
        parts = [(step, self.part(cells.table_file(step, name), columns)) for step in chosen]
        found = [
            part.append_column("step", pa.array([step] * len(part), pa.int64()))
            for step, part in parts
            if part is not None
        ]
        if not found:
            raise SihError(f"{self.root}: no step has a readable table {name}")
        return pa.concat_tables(found, promote_options="permissive").to_pandas()

    def part(
        self, file: Path, columns: Iterable[str] | None = None, where: Mapping[str, Collection[Any]] | None = None
    ) -> "pa.Table | None":
        """One step's table, all or some of its columns; None, and named in `damaged`, where it cannot be read.

        Args:
            where: groups of rows in which such a column has none of its values are not read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pa.OSFile(str(file)) as raw, pq.ParquetFile(raw) as opened:
                wanted = opened.schema_arrow.names if columns is None else list(columns)
                if missing := set(wanted) - set(opened.schema_arrow.names):
                    raise OSError(f"no column {', '.join(sorted(missing))}")
                of_file = opened.metadata
                rows = [n for n in range(of_file.num_row_groups) if _may_hold(of_file.row_group(n), where or {})]
                return opened.read_row_groups(rows, wanted)
        except (OSError, pa.ArrowException) as error:
            self.damaged[str(file.relative_to(self.root))] = str(error).splitlines()[0]
            return None

    def manifest(self, step: int, score: str | None = None) -> dict[str, Any]:
        """A cell's manifest: the score's, or that of the first score with one at this step.

        Raises:
            SihError: there is none.
        """
        for name, cells in self.scores.items():
            if score in (None, name):
                try:
                    return cells.manifest(step)
                except FileNotFoundError:
                    continue
                except ValueError as error:
                    self.damaged[f"{cells.name}/step{step:07d}/manifest.json"] = str(error)
        raise SihError(f"{self.root}: step {step} has no result{f' of {score}' if score else ''}")

    def manifests(self) -> dict[int, dict[str, dict[str, Any]]]:
        """All manifests, by step and score."""
        found: dict[int, dict[str, dict[str, Any]]] = {}
        for score, cells in self.scores.items():
            for step in cells.steps():
                try:
                    found.setdefault(step, {})[score] = cells.manifest(step)
                except ValueError as error:
                    self.damaged[f"{cells.name}/step{step:07d}/manifest.json"] = str(error)
        return dict(sorted(found.items()))

    def write_text(self, name: str, text: str) -> Path:
        """Write a view (emergence.json, ...) as a whole. Raises SihError when that fails."""
        return write_text(self.root / name, text, self.cannot_write)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A view's contents; None when there is none, or it cannot be read."""
        try:
            return json.loads((self.root / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def cannot_write(self, error: OSError) -> str:
        """The message for when this folder cannot be written."""
        return (
            f"{self.root} cannot be written: {error.strerror or error}. Free room or choose another output=DIR; "
            "what was measured is kept, and the same command continues from here"
        )


def equal_weights(manifests: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> list[list[int]]:
    """Groups of steps that were measured on the same weights, except steps 0 and 1, which should share theirs.

    Pythia's step 1 has step 0's weights, since the first learning rate is 0. Any other pair means that some
    label names another step's weights.
    """
    steps_of: dict[tuple[str, ...], list[int]] = {}
    for step, by_score in manifests.items():
        for weights in {tuple(sorted(m["weights_sha256"].values())) for m in by_score.values()}:
            steps_of.setdefault(weights, []).append(step)
    return [steps for steps in steps_of.values() if len(steps) > 1 and steps != [0, 1]]


def suspect(manifests: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> dict[int, str]:
    """Steps that were measured although the audit convicts them, and why it does."""
    found = {}
    for step, by_score in manifests.items():
        if reasons := [m["suspect"] for m in by_score.values() if m.get("suspect")]:
            found[step] = reasons[0]
    return found


def runs_in(output: Path) -> list[Run]:
    """Every run in a folder of runs, by name; anything that is not a run of this layout is left out."""
    return [Run.open(file.parent) for file in sorted(output.glob(f"*/{RECORD}")) if _is_this_layout(file)]


def _is_this_layout(file: Path) -> bool:
    try:
        Run.open(file.parent)
    except SihError:
        return False
    return True


def _no_run(root: Path) -> str:
    if not root.is_dir():
        others = [run.name for run in runs_in(root.parent)] if root.parent.is_dir() else []
        hint = f"; runs there: {', '.join(others)}" if others else ""
        return f"{root}: no such run{hint}. Measure first with python -m sih.sweep, or name a folder with run=DIR"
    if (root / "config.yaml").exists() or list(root.glob("*/config.yaml")):
        return (
            f"{root} has layout 1, written by sih 0.1.0; this version reads layout {LAYOUT}. "
            "Read it with that version, or measure again"
        )
    return f"{root} is not a run: it has no {RECORD}; expected a folder such as runs/pythia-410m"


def _may_hold(group: "parquet.RowGroupMetaData", where: Mapping[str, Collection[Any]]) -> bool:
    """Whether a group of rows may have a row with one of each column's values, by its columns' least and largest."""
    for column in map(group.column, range(group.num_columns)):
        wanted, known = where.get(column.path_in_schema), column.statistics
        if wanted is None or known is None or not known.has_min_max:
            continue
        if not any(known.min <= value <= known.max for value in wanted):
            return False
    return True
