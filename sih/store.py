"""The truth: one atomic result for every (model, config, step).

runs/<model>/<config hash>/
  config.yaml  examples.jsonl  exclusions.csv  prompts.jsonl  loss_texts.jsonl
  step0000512/  *.parquet  manifest.json        written aside, then renamed
  step0000512.failed.json                       why a step has no result
  history/step0000512-<k>.json                  manifests of results that were measured again
"""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sih import aside
from sih.errors import SihError

_REPLACED = ".replaced-"


def folder_name(step: int) -> str:
    """512 -> "step0000512": folders sort by step."""
    return f"step{step:07d}"


def _failure(step: int) -> str:
    return f"{folder_name(step)}.failed.json"


class Store:
    """Results of one model and configuration in `root`; see the module for the layout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "config.yaml").read_text())

    def steps(self) -> list[int]:
        """The steps that have a result, in increasing order."""
        found = (p.parent.name for p in self.root.glob("step*/manifest.json"))
        return sorted(int(name.removeprefix("step")) for name in found)

    def failed(self) -> dict[int, str]:
        """Steps without a result that were tried, and why they failed."""
        done = set(self.steps())
        tried = (int(p.name.removeprefix("step").split(".")[0]) for p in sorted(self.root.glob("step*.failed.json")))
        return {step: reason for step in tried if step not in done and (reason := self.failure(step))}

    def manifest(self, step: int) -> dict[str, Any]:
        return json.loads((self.root / folder_name(step) / "manifest.json").read_text())

    def equal_weights(self) -> list[list[int]]:
        """Groups of steps that were measured on the same weights; 0 and 1 alone are as they should be.

        Pythia's step 1 has step 0's weights, since the first learning rate is 0. Any other pair means that a
        label names weights which are not that step's.
        """
        steps_of: dict[tuple[str, ...], list[int]] = {}
        for step in self.steps():
            steps_of.setdefault(tuple(sorted(self.manifest(step)["weights_sha256"].values())), []).append(step)
        return [steps for steps in steps_of.values() if len(steps) > 1 and steps != [0, 1]]

    def suspect(self) -> dict[int, str]:
        """Steps that were measured although the audit convicts them, and of what."""
        return {step: reason for step in self.steps() if (reason := self.manifest(step).get("suspect"))}

    def table(self, step: int, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        return pq.read_table(self.root / folder_name(step) / f"{name}.parquet", columns=columns).to_pandas()

    def tables(self, name: str, steps: Iterable[int] | None = None, columns: list[str] | None = None) -> pd.DataFrame:
        """One table over all steps (or the given ones), all or some of its columns, with a column `step`."""
        chosen = self.steps() if steps is None else steps
        return pd.concat([self.table(s, name, columns).assign(step=s) for s in chosen], ignore_index=True)

    def begin(self, config: dict[str, Any], texts: dict[str, str]) -> None:
        """Create the store, or make sure that this one holds the same config and inputs.

        Args:
            config: the measured configuration, written to config.yaml.
            texts: contents by file name (examples.jsonl, exclusions.csv, ...).

        Raises:
            SihError: the folder holds other inputs, or cannot be written.
        """
        wanted = {"config.yaml": yaml.safe_dump(config, sort_keys=False), **texts}
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            aside.clear_dead(self.root)
            for name, text in wanted.items():
                file = self.root / name
                if not file.exists():
                    _write_file(file, text)
                elif file.read_text(encoding="utf-8") != text:
                    raise SihError(
                        f"{file} differs from what this run would measure on, though the config hash is the same: "
                        "the file was changed, or other library versions draw other inputs. "
                        "Move the folder away or choose another output=DIR"
                    )
        except OSError as error:
            raise SihError(self.cannot_write(error)) from None

    def write(self, step: int, tables: dict[str, pa.Table], manifest: dict[str, Any]) -> None:
        """Keep one step's result, replacing an earlier one whole; its manifest goes to history/.

        A crash at any moment leaves the earlier result, the new one, or none: never a mixture.

        Raises:
            SihError: the folder cannot be written (full, read-only); what is there stays.
        """
        final = self.root / folder_name(step)
        unfinished = None
        try:
            unfinished = Path(tempfile.mkdtemp(prefix=aside.prefix(), dir=self.root))
            os.chmod(unfinished, 0o755)
            for name, table in tables.items():
                _write_table(unfinished / f"{name}.parquet", table)
            _write_file(unfinished / "manifest.json", json.dumps(manifest, indent=2) + "\n")
            for file in unfinished.iterdir():
                _sync(file)
            if final.exists():
                replaced = self.root / f"{_REPLACED}{final.name}"
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

    def write_failure(self, step: int, reason: str) -> None:
        """Record why a step has no result. An earlier result of the step, if any, stays."""
        self.write_text(_failure(step), json.dumps({"step": step, "reason": reason}) + "\n")

    def failure(self, step: int) -> str | None:
        """Why the last try of a step failed, also where an earlier one has a result; None when it did not fail."""
        try:
            return json.loads((self.root / _failure(step)).read_text())["reason"]
        except FileNotFoundError:
            return None

    def forget_failures(self, steps: list[int]) -> None:
        """Before these steps are tried again: what is said of them afterwards is of that try."""
        for step in steps:
            (self.root / _failure(step)).unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> Path:
        """Write a derived file (emergence.json, ...) whole."""
        try:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            _write_file(self.root / name, text)
        except OSError as error:
            raise SihError(self.cannot_write(error)) from None
        return self.root / name

    def recover(self, step: int) -> None:
        """Finish or undo the step's replacement that a killed process left; for whoever holds the step's claim."""
        final = self.root / folder_name(step)
        replaced = self.root / f"{_REPLACED}{final.name}"
        if replaced.exists():
            if final.exists():
                self._to_history(replaced)
            else:
                os.rename(replaced, final)

    def cannot_write(self, error: OSError) -> str:
        """What to tell whoever cannot write here."""
        return (
            f"{self.root} cannot be written: {error.strerror or error}. Free room or choose another output=DIR; "
            "what was measured is kept, the same command goes on from here"
        )

    def _to_history(self, replaced: Path) -> None:
        history = self.root / "history"
        history.mkdir(exist_ok=True)
        name = replaced.name.removeprefix(_REPLACED)
        if (replaced / "manifest.json").exists():  # else it was moved by a process killed right here
            count = len(list(history.glob(f"{name}-*.json")))
            os.rename(replaced / "manifest.json", history / f"{name}-{count + 1}.json")
        shutil.rmtree(replaced)


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_text(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV table with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def _write_table(file: Path, table: pa.Table) -> None:
    """Parquet; shares and means, which rarely repeat, byte by byte, which makes them a fifth smaller."""
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [name for name in table.column_names if name not in floats]
    pq.write_table(table, file, compression="zstd", use_byte_stream_split=floats, use_dictionary=others)


def _write_file(file: Path, text: str) -> None:
    """Write aside, then rename: a reader sees the old contents or the new ones."""
    unfinished = file.with_name(f"{aside.prefix()}{file.name}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        _sync(unfinished)
        os.rename(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
