"""Results on disk: one atomic result, called a cell, for every (checkpoint, score).

Each score with one setting of its options has its own folder inside the run's:

relation_index/4f0c9b1d2e3a/      the score, and its key: 12 digits that stand for the setting
  setting.yaml                    everything that the key stands for
  series.json                     what the tables hold, for those who read them
  examples.jsonl ...              what the score drew, once
  left_out.csv                    what was left out of the data, by reason
  step0000512/  *.parquet manifest.json     one cell: written aside, then renamed
  step0001000.failed.json         why a step has no result
  history/step0000512-1.json      manifests of cells that were measured again
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sih.checkpoints import aside
from sih.errors import SihError

if TYPE_CHECKING:
    import pyarrow as pa


_REPLACED = "replaced-"  # in the name of a result that is being replaced by a new one
_ROWS_TOGETHER = 2**16  # in a table's group of rows
_PAGE = 2**24  # bytes at most, so that the rows alone decide


def folder_name(step: int) -> str:
    """512 -> "step0000512": folders sort by step."""
    return f"step{step:07d}"


def key_of(setting: Mapping[str, Any]) -> str:
    """12 hex digits of a setting's sha256; the setting is all that a score's numbers depend on, but the checkpoint."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:12]


def _failure(step: int) -> str:
    return f"{folder_name(step)}.failed.json"


class Cells:
    """The cells of one score with one setting, in `root`; see the module for the layout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """score/key: the folder's path inside the run's folder."""
        return f"{self.root.parent.name}/{self.root.name}"

    @property
    def setting(self) -> dict[str, Any]:
        """What the key stands for."""
        return yaml.safe_load((self.root / "setting.yaml").read_text())

    def description(self) -> dict[str, Any] | None:
        """What the tables hold, as `scores.described` gives it; None before anything was drawn."""
        try:
            return json.loads((self.root / "series.json").read_text())
        except FileNotFoundError:
            return None

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write down what the tables hold, unless the file already says the same."""
        if self.description() != json.loads(json.dumps(description)):
            self.write_text("series.json", json.dumps(description, indent=2) + "\n")

    def steps(self) -> list[int]:
        """The steps that have a result, in increasing order."""
        found = (p.parent.name for p in self.root.glob("step*/manifest.json"))
        return sorted(int(name.removeprefix("step")) for name in found)

    def failed(self) -> dict[int, str]:
        """Steps that were tried and have no result, and why they failed."""
        done = set(self.steps())
        tried = (int(p.name.removeprefix("step").split(".")[0]) for p in sorted(self.root.glob("step*.failed.json")))
        return {step: reason for step in tried if step not in done and (reason := self.failure(step))}

    def manifest(self, step: int) -> dict[str, Any]:
        return json.loads((self.root / folder_name(step) / "manifest.json").read_text())

    def table_file(self, step: int, name: str) -> Path:
        """Where a table of a step lies."""
        return self.root / folder_name(step) / f"{name}.parquet"

    def begin(self, setting: Mapping[str, Any], drawn: Mapping[str, str]) -> None:
        """Create the folder, or make sure that it holds the same setting and inputs.

        What a killed process of this machine left half done is finished or undone.

        Args:
            drawn: what the score is measured on: the text of each file, by name.

        Raises:
            SihError: the folder holds other inputs, or cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.recover_dead()
            self._keep("setting.yaml", yaml.safe_dump(dict(setting), sort_keys=False).encode())
            for name, content in drawn.items():
                self._keep(name, content.encode())
        except OSError as error:
            raise SihError(self.cannot_write(error)) from None

    def _keep(self, name: str, content: bytes) -> None:
        file = self.root / name
        if not file.exists():
            _write_file(file, content)
        elif file.read_bytes() != content:
            raise SihError(
                f"{file} differs from what this run would measure on, though the key of the setting is the same: "
                "the file was changed, or other library versions draw other inputs. "
                "Move the folder away or choose another name= or output="
            )

    def write(self, step: int, tables: "Mapping[str, pa.Table]", manifest: dict[str, Any]) -> None:
        """Write one step's result. It replaces any earlier one as a whole, whose manifest goes to history/.

        A crash at any moment leaves the earlier result, the new one, or none: never a mixture.

        Raises:
            SihError: the folder cannot be written (full, read-only); what is there stays.
        """
        final = self.root / folder_name(step)
        unfinished = None
        try:
            unfinished = Path(tempfile.mkdtemp(prefix=aside.prefix(), dir=self.root))
            os.chmod(unfinished, 0o755)
            hashes = {}
            for name, table in tables.items():
                content = _parquet(table)
                hashes[name] = hashlib.sha256(content).hexdigest()
                (unfinished / f"{name}.parquet").write_bytes(content)
            manifest = {**manifest, "tables_sha256": hashes}
            (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            for file in unfinished.iterdir():
                _sync(file)
            if final.exists():
                replaced = self.root / f"{aside.prefix()}{_REPLACED}{final.name}"
                os.rename(final, replaced)
                os.rename(unfinished, final)
                self._to_history(replaced)
            else:
                os.rename(unfinished, final)
            _sync(self.root)
            self.forget_failures([step])
        except OSError as error:
            raise SihError(self.cannot_write(error)) from None
        finally:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)

    def adopt(self, step: int, other: "Cells") -> None:
        """Link a step's cell from another run with the same setting, and what was drawn for it.

        Linked files take no extra room, and a cell that is measured again gets new files. Where the file system has
        no links, the files are copied.

        Raises:
            SihError: the folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for file in other.root.iterdir():
                whole = file.is_file() and not file.name.startswith((aside.ANY, "step"))
                if whole and not (self.root / file.name).exists():
                    _link(file, self.root / file.name)
            unfinished = Path(tempfile.mkdtemp(prefix=aside.prefix(), dir=self.root))
            os.chmod(unfinished, 0o755)
            for file in (other.root / folder_name(step)).iterdir():
                _link(file, unfinished / file.name)
            os.rename(unfinished, self.root / folder_name(step))
        except OSError as error:
            raise SihError(self.cannot_write(error)) from None

    def write_failure(self, step: int, reason: str) -> None:
        """Record why a step has no result. An earlier result of the step, if any, stays."""
        self.write_text(_failure(step), json.dumps({"step": step, "reason": reason}) + "\n")

    def failure(self, step: int) -> str | None:
        """Why the last attempt at a step failed, even if an earlier one succeeded; None when it did not fail."""
        try:
            return json.loads((self.root / _failure(step)).read_text())["reason"]
        except FileNotFoundError:
            return None

    def forget_failures(self, steps: list[int]) -> None:
        """Forget why these steps failed, before they are tried again."""
        for step in steps:
            (self.root / _failure(step)).unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file as a whole: readers see the old text or the new one. Raises SihError when it cannot."""
        return write_text(self.root / name, text, self.cannot_write)

    def recover(self, step: int) -> None:
        """Finish or undo a replacement of the step that a killed process left. Call it only with the step claimed."""
        for replaced in self.root.glob(f"{aside.ANY}*{_REPLACED}{folder_name(step)}"):
            self._undo_or_finish(replaced)

    def recover_dead(self) -> None:
        """Finish or undo what dead processes of this machine left, at any step."""
        for replaced in aside.of_the_dead(self.root):
            if _REPLACED in replaced.name:
                self._undo_or_finish(replaced)
        aside.clear_dead(self.root)

    def _undo_or_finish(self, replaced: Path) -> None:
        final = self.root / replaced.name.split(_REPLACED)[1]
        try:
            if final.exists():
                self._to_history(replaced)
            else:
                os.rename(replaced, final)
        except FileNotFoundError:  # another process has just done it
            return

    def cannot_write(self, error: OSError) -> str:
        """The message for when this folder cannot be written."""
        return (
            f"{self.root} cannot be written: {error.strerror or error}. Free room or choose another output=DIR; "
            "what was measured is kept, and the same command continues from here"
        )

    def _to_history(self, replaced: Path) -> None:
        history = self.root / "history"
        history.mkdir(exist_ok=True)
        name = replaced.name.split(_REPLACED)[1]
        if (replaced / "manifest.json").exists():  # else it was moved by a process killed right here
            count = len(list(history.glob(f"{name}-*.json")))
            os.rename(replaced / "manifest.json", history / f"{name}-{count + 1}.json")
        shutil.rmtree(replaced)


def why_failed(step: int, lacking: Mapping[str, Cells], chosen: int) -> str | None:
    """Why cells of a step failed, each reason once with its scores; None if none of them was tried.

    Args:
        lacking: by score, the cells that lack a result at the step.
        chosen: how many scores there are; a reason that all of them share names none.
    """
    scores_of: dict[str, list[str]] = {}
    for score, cells in lacking.items():
        if reason := cells.failure(step):
            scores_of.setdefault(reason, []).append(score)
    told = [r if len(names) == chosen else f"{', '.join(names)}: {r}" for r, names in scores_of.items()]
    return "; ".join(told) or None


def write_text(file: Path, text: str, say: Callable[[OSError], str]) -> Path:
    """Write a file aside, then rename it. Raises SihError, with the message from `say`, when that fails."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_file(file, text.encode())
    except OSError as error:
        raise SihError(say(error)) from None
    return file


def _parquet(table: "pa.Table") -> bytes:
    """Parquet, for small files that are read fast.

    Floats rarely repeat, so they are stored with byte-stream split, which makes them a fifth smaller. Readers skip
    groups of rows that have none of the values that they want; each group is one page. Columns without nulls say so:
    they are read in two thirds of the time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = [field.with_nullable(table[field.name].null_count > 0) for field in table.schema]
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [name for name in table.column_names if name not in floats]
    out = io.BytesIO()
    pq.write_table(
        pa.table(table.columns, schema=pa.schema(whole, table.schema.metadata)), out, _ROWS_TOGETHER,
        data_page_size=_PAGE, max_rows_per_page=_ROWS_TOGETHER,
        compression="zstd", use_byte_stream_split=floats, use_dictionary=others,
    )  # fmt: skip
    return out.getvalue()


def _write_file(file: Path, content: bytes) -> None:
    """Write aside, then rename: a reader sees the old contents or the new ones."""
    unfinished = file.with_name(f"{aside.prefix()}{file.name}")
    try:
        unfinished.write_bytes(content)
        _sync(unfinished)
        os.rename(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another file system, or one without links
        shutil.copy2(file, to)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
