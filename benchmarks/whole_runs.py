"""Whole simulated runs on disk, for the calibration of everything that a sweep's answer says.

Each has hundreds of heads, of which a few rise at known times: an index with two nulls at the same events, and a score
without nulls; and two in-context-learning scores: a mean over documents, and a share of few answers. The store is
written as a sweep writes it, and read as `python -m sih.correlate` reads it.

Letters: H heads, D documents, C checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from simulator import GRIDS, SHAPES, Setting, answered, jitters

from sih.emergence.onset import octaves
from sih.results.cells import key_of
from sih.results.run import Record, Run
from sih.scores import Series, described

HEADS = (24, 16)  # layers, heads in each
DOCUMENTS = 80  # half of which choose heads
ANSWERS = 150
RISE = 0.3
EVENTS = 3.0  # expected events of a head in a document
EVENT_SD = 0.15  # of one event's share


@dataclass(frozen=True)
class Truth:
    """One run. `head_times_H`: when each head rises, octaves, NaN for never; `icl_time`: NaN for never.

    null_rises: both nulls of the index rise with it, by as much: an index equal to its null.
    """

    grid: int
    head_times_H: np.ndarray
    icl_time: float
    jitter: float = 0.04
    autocorrelation: float = 0.5
    fall: float = 1.0
    null_rises: bool = False


@dataclass
class Simulated:
    """The score that such a run was measured with; see sih/scores/__init__.py."""

    version: ClassVar[int] = 1
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "index": ("document", "layer", "head", "events", "own", "fixed", "random"),
        "matching": ("document", "layer", "head", "value"),
        "losses": ("document", "value"),
        "answers": ("document", "value"),
    }

    def series(self, facts: Mapping[str, Any]) -> list[Series]:
        nulls = {null: (null, "own", "events") for null in ("fixed", "random")}
        return [
            Series("index", "index", "heads", "index", "own", "share", "texts", 0.05, "events", nulls=nulls,
                   control="fixed"),
            Series("matching", "matching", "heads", "matching", "value", "share", "sequences", 0.05, chance=0.1),
            Series("gain", "gain", "icl", "losses", "value", "nats", "texts", 0.05, chance=0.1),
            Series("accuracy", "accuracy", "icl", "answers", "value", "share", "answers", 0.1, chance=0.25, share=True),
        ]  # fmt: skip


def written(root: Path, truth: Truth, rng: np.random.Generator) -> Run:
    """Write the run's tables into `root`."""
    steps, values = GRIDS[truth.grid], _values(truth, rng)
    setting = {"score": "simulated"}
    record = Record(
        model={"name": root.name, "source": "local", "repo": None, "seed": 0, "tokens_per_step": 1},
        weights="w", tokenizer="t", seed=int(rng.integers(2**31)), dtype="float32", offered=steps, steps=steps,
        settings={"simulated": key_of(setting)}, sih="0",
    )  # fmt: skip
    run = Run(root, record)
    cells = run.scores["simulated"]
    cells.begin(setting, {})
    cells.describe({"told": "", **described(Simulated(), {})})
    shape = {"layers": HEADS[0], "heads": HEADS[1]}
    for c, step in enumerate(steps):
        tables = {name: pa.table(_at(columns, c, len(steps))) for name, columns in values.items()}
        manifest = {"step": step, "shape": shape, "weights_sha256": {"w": str(step)}, "tables_sha256": {}}
        cells.write(step, tables, manifest)
    run.write_record()
    return run


def _at(columns: Mapping[str, np.ndarray], c: int, count: int) -> dict[str, np.ndarray]:
    """The columns at one of `count` checkpoints; keys are the same at all."""
    return {k: v[..., c].ravel() if v.shape[-1] == count and v.ndim > 1 else v for k, v in columns.items()}


def _values(truth: Truth, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Columns by table: keys by row, values (H, D, C) of heads and (D, C) of in-context learning."""
    heads = len(truth.head_times_H)
    layer_HD, head_HD = (np.broadcast_to(v[:, None], (heads, DOCUMENTS)) for v in np.divmod(np.arange(heads), HEADS[1]))
    document_HD = np.broadcast_to([f"d{d:02d}" for d in range(DOCUMENTS)], (heads, DOCUMENTS))
    keys = {"document": document_HD.ravel(), "layer": layer_HD.ravel(), "head": head_HD.ravel()}
    events_HDC = rng.poisson(EVENTS, (heads, DOCUMENTS, len(GRIDS[truth.grid])))
    times_H = np.where(np.isnan(truth.head_times_H), np.nan, truth.head_times_H)

    def summed(times_H: np.ndarray) -> np.ndarray:
        """Sums over events of shares around a level that may rise."""
        level_HDC = _levels(truth, times_H, DOCUMENTS, rng)
        return events_HDC * level_HDC + np.sqrt(events_HDC) * rng.normal(0, EVENT_SD, events_HDC.shape)

    nowhere_H = np.full(heads, np.nan)
    null_times_H = times_H if truth.null_rises else nowhere_H
    icl_C = _levels(truth, np.array([truth.icl_time]), 1, rng)[0]
    gain_DC = _levels(truth, np.array([truth.icl_time]), DOCUMENTS, rng)[0]
    matching_HDC = _levels(truth, times_H, DOCUMENTS, rng)
    return {
        "index": keys | {"events": events_HDC, "own": summed(times_H)}
        | {null: summed(null_times_H) for null in ("fixed", "random")},
        "matching": keys | {"value": matching_HDC + rng.normal(0, RISE / 2, matching_HDC.shape)},
        "losses": {"document": document_HD[0], "value": gain_DC + rng.normal(0, RISE, gain_DC.shape)},
        "answers": {"document": np.array([f"q{q:03d}" for q in range(ANSWERS)]),
                    "value": answered(0.15 + icl_C[0] + (RISE / 2) * (icl_C[0] - 0.1), ANSWERS, rng)},
    }  # fmt: skip


def _levels(truth: Truth, times_H: np.ndarray, documents: int, rng: np.random.Generator) -> np.ndarray:
    """The expected value of each head and document at each checkpoint, (H, D, C): .1, or from .1 to .1 + RISE."""
    x_C = octaves(np.array(GRIDS[truth.grid]))
    rise_HC = np.stack([np.zeros(len(x_C)) if np.isnan(t) else SHAPES["sigmoid"](x_C, t) for t in times_H])
    setting = Setting("flat", truth.grid, "mean", RISE, truth.jitter, truth.autocorrelation, fall=truth.fall)
    shared_HC = jitters(setting, len(x_C), len(times_H), rng)
    level_HD1 = rng.normal(0, 0.3 * RISE, (len(times_H), documents, 1)) if documents > 1 else 0.0
    size_HD1 = rng.normal(1, 0.3, (len(times_H), documents, 1)) if documents > 1 else 1.0
    return 0.1 + level_HD1 + RISE * size_HD1 * rise_HC[:, None] + shared_HC[:, None]
