"""Views of a run: the answer, figures, report and publication. Each is kept with a digest of what it shows.

A view is made again only when what it shows has changed: a cell, an option that it depends on, or the code that
makes it. Digests are taken from the manifests, which hold the sha256 of every table, so no table is read for them.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import sih
from sih.config import EmergenceConfig, TrackerConfig
from sih.emergence import files
from sih.emergence.answer import answer_of
from sih.emergence.terminal import show
from sih.emergence.time_axis import axis_of
from sih.errors import SihError
from sih.results.run import Run
from sih.tracker.record import is_current, published_already

if TYPE_CHECKING:
    from sih.results.trajectories import Trajectories

_DIGESTS = "views.json"


class Views:
    """The views of one run. `made` names those that had to be made again.

    Args:
        steps: only these of the run's checkpoints; all of them when None.
        axis: `steps` or `tokens`, of figures, report and table; None for steps.
    """

    def __init__(self, run: Run, options: EmergenceConfig, suggest: int, steps: Sequence[int] | None = None,
                 axis: str | None = None) -> None:  # fmt: skip
        self.axis = axis or "steps"
        if self.axis == "tokens" and run.record.model.get("tokens_per_step") is None:
            raise SihError(f"{run.root}: axis=tokens, but its tokens per step are unknown; set model.tokens_per_step")
        self.run, self.options, self.suggest, self.steps = run, options, suggest, steps
        self.made: list[str] = []
        self._kept: dict[str, Any] = run.read_json(_DIGESTS) or {}

    @cached_property
    def data(self) -> "Trajectories":
        """The run's tables as trajectories; read only where a view is made."""
        from sih.results.trajectories import Trajectories  # pandas takes half a second

        return Trajectories(self.run, self.options, self.steps)

    @cached_property
    def cells(self) -> str:
        """A digest of everything measured: every cell's tables, and what they hold."""
        found: dict[str, Any] = {}
        for step, by_score in self.run.manifests().items():
            for score, manifest in by_score.items():
                cells = self.run.scores[score]
                sizes = {t: _size(cells.table_file(step, t)) for t in manifest["tables_sha256"]}
                found[f"{score} {step}"] = [manifest["tables_sha256"], sizes, manifest.get("suspect")]
        return digest_of(found, self.run.descriptions(), self.run.failed(), self.run.record.settings)

    @cached_property
    def manifests(self) -> str:
        """A digest of where the cells come from; it changes when a cell is measured again, even to the same numbers."""
        return digest_of(self.run.manifests())

    def emergence(self) -> dict[str, Any]:
        """The answer, from emergence.json if it matches these cells and options, else computed."""
        return self._emergence

    @cached_property
    def _emergence(self) -> dict[str, Any]:
        wanted = digest_of(
            self.cells, vars(self.options), self.suggest, self.steps, self.run.record.offered, self.run.record.seed,
            self.run.record.model, code_of("emergence", "results", "checkpoints/schedule.py"),
        )  # fmt: skip
        kept = self.run.read_json(files.JSON)
        if kept is not None and kept.get("digest") == wanted:
            return kept
        result = {"digest": wanted, **self._analysed()}
        files.write(result, self.run.write_text)
        self.made.append("emergence")
        return result

    def read_only(self) -> dict[str, Any]:
        """The answer in emergence.json if it matches these cells, whatever its options; else computed.

        Nothing is written.
        """
        kept = self.run.read_json(files.JSON)
        return kept if kept is not None and kept.get("cells") == self.cells else self._analysed()

    def _analysed(self) -> dict[str, Any]:
        from sih.emergence.of_run import analysed  # scipy's statistics take a second

        found = analysed(self.data, self.options, self.suggest)
        return files.finite({"cells": self.cells, "options": vars(self.options), **found})

    def on_axis(self) -> dict[str, Any]:
        """The answer with the axis of time that it is shown on, and in its words."""
        found = {**self.emergence(), "axis": self.axis}
        return {**found, "answer": answer_of(found, axis_of(found))} if self.axis == "tokens" else found

    def figures(self) -> list[Path]:
        """All figures as PNG and SVG; returns the files."""
        return self._figures

    @cached_property
    def _figures(self) -> list[Path]:
        wanted = digest_of(self.emergence()["digest"], self.axis, code_of("../analysis"))
        kept = self._kept.get("figures", {})
        found = [self.run.root / name for name in kept.get("files", [])]
        if kept.get("digest") == wanted and all(file.exists() for file in found):
            return found
        from sih.analysis.drawing import draw_all  # matplotlib takes a second

        found = draw_all(self.data, self.on_axis(), self.run.root / "figures", self.run.model)
        self._keep("figures", wanted, found)
        return found

    def report(self) -> Path:
        """report.html, with the figures inside."""
        self.figures()
        file = self.run.root / "report.html"
        wanted = digest_of(self._kept["figures"]["digest"], self.manifests)
        if self._kept.get("report", {}).get("digest") == wanted and file.exists():
            return file
        from sih.analysis.report import page

        self.run.write_text(file.name, page(self.data, self.on_axis()))
        self._keep("report", wanted, [file])
        return file

    def publish(self, tracker: TrackerConfig, force: bool = False) -> list[str]:
        """Publish the run, unless the newest publication shows the same; returns what to tell the user."""
        contents = digest_of(self.manifests, self.emergence()["digest"], self._kept.get("figures", {}).get("digest"),
                             self.axis)  # fmt: skip
        if not force and is_current(self.run, tracker, contents):
            return published_already(self.run)
        from sih.tracker.publisher import publish  # W&B takes two seconds

        figures = [self.run.root / name for name in self._kept.get("figures", {}).get("files", [])]
        told = publish(self.run, tracker, self.data, self.on_axis(), figures, contents, force)
        self.made.append("publication")
        return told

    def show(self, console: Console) -> None:
        """The table and the answer; and the files that could not be read."""
        show(self.on_axis(), console)

    def _keep(self, view: str, digest: str, made: Iterable[Path]) -> None:
        self._kept[view] = {"digest": digest, "files": [str(f.relative_to(self.run.root)) for f in made]}
        self.run.write_text(_DIGESTS, json.dumps(self._kept, indent=2) + "\n")
        self.made.append(view)


def digest_of(*parts: Any) -> str:
    """sha256 of plain values, hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def code_of(*places: str) -> str:
    """sha256 of the source files in `places` (relative to sih/), since changed code may show other things."""

    total = hashlib.sha256()
    for place in places:
        root = (sih.CONF.parent / "analysis") if place == "../analysis" else Path(sih.__file__).parent / place
        for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if file.suffix in (".py", ".jinja"):
                total.update(file.read_bytes())
    return total.hexdigest()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else -1
