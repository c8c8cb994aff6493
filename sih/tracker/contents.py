"""What a publication shows: the run, as numbers, tables, pictures and files for Weights & Biases."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wandb

from sih.checkpoints.schedule import tokens_of
from sih.emergence.telling import telling
from sih.results.cells import folder_name
from sih.results.run import RECORD, Run
from sih.results.trajectories import Trajectories
from sih.scores import Curve, HeadMap

# Files that belong to one publication or to the views, not to the results.
_OWN = ("publication.json", "views.json")
ALL = "all_heads"  # section of the numbers over all heads
PICTURES = 24  # steps at which heatmaps are shown
HEADS = 300  # rows of the table of heads; W&B's tables page some hundred well


def metric(section: str, name: str) -> str:
    """A name that W&B's filters accept: letters, digits and _ between slashes."""
    words = re.sub(r"[^a-zA-Z0-9_]+", "_", name).strip("_")
    return f"{section}/{words if re.match('[a-zA-Z_]', words) else f'_{words}'}"


def headline_scalars(data: Trajectories, emergence: dict[str, Any]) -> list[dict[str, float]]:
    """The headline series at each checkpoint, their nulls, losses, and summaries of the head maps; NaN left out.

    In step order, each with its `train_step` and `tokens`, and both one step later, `train_step_plus_1` and
    `tokens_plus_1_step`, since a log axis drops step 0; no tokens where those of a step are unknown. A head series is
    that of the chosen top heads; a summary is the mean or the maximum over all heads.
    """
    wanted = [m for m in data.maps if m.summary and data.has(m.table)]
    maps = data.head_maps(wanted, emergence["steps"], min_events=1)
    losses = {c.over_training: last_points(data, c) for c in data.curves if c.over_training and data.has(c.table)}
    shown = [row for row in emergence["series"] if row["series"] in emergence["headline"]]
    size, rows = data.run.record.model.get("tokens_per_step"), []
    for c, step in enumerate(emergence["steps"]):
        row = _at(step, size)
        for series in shown:
            row[metric(series["kind"], series["series"])] = series["value"][c]
            if series["null"] is not None:
                row[metric(series["kind"], f"{series['series']} null")] = series["null"][c]
        row |= _effect_scalars(emergence.get("effects"), step)
        for m in wanted:
            row[metric(ALL, m.name)] = over_heads(maps[m.name][c], m)
        for name, value_of_step in losses.items():
            row[metric("icl", str(name))] = value_of_step.get(step, np.nan)
        rows.append(_known(row))
    return rows


def _effect_scalars(effects: dict[str, Any] | None, step: int) -> dict[str, float]:
    """What each group's knock-out costs at a step, its interval, and the mean and largest cost of its control sets."""
    found: dict[str, float] = {}
    if effects is None or step not in effects["steps"]:
        return found
    for row in (r for r in effects["rows"] if r["shown"]):
        at, name = effects["steps"].index(step), f"{row['group']} {row['outcome_label']}"
        ends = "controls_high" if row["sign"] > 0 else "controls_low"
        for what, column in (("", "effect"), (" low", "low"), (" high", "high"), (" controls", "controls"),
                             (" controls most", ends)):  # fmt: skip
            value = row[column][at]
            found[metric("cost", name + what)] = np.nan if value is None else row["sign"] * value
    return found


def _at(step: int, tokens_per_step: int | None) -> dict[str, Any]:
    """When a checkpoint was, on every axis that a panel may have."""
    later = {"train_step_plus_1": step + 1, "tokens_plus_1_step": tokens_of(step + 1, tokens_per_step)}
    return {"train_step": step, "tokens": tokens_of(step, tokens_per_step), **later}


def _known(row: dict[str, Any]) -> dict[str, float]:
    return {k: v if isinstance(v, int) else float(v) for k, v in row.items() if v is not None and np.isfinite(v)}


def over_heads(value_H: np.ndarray, wanted: HeadMap) -> float:
    """The mean or the maximum over heads of a map; heads without a value are left out."""
    seen = value_H[np.isfinite(value_H)]
    return float(getattr(np, wanted.summary or "max")(seen)) if len(seen) else np.nan


def last_points(data: Trajectories, curve: Curve) -> dict[int, float]:
    """The value of a curve's last point, by step."""
    table = data.curve(curve, data.steps_with(curve.table))
    last = table.loc[table.groupby("step")[curve.x].idxmax()]
    return {int(step): float(value) for step, value in zip(last["step"], last["value"], strict=True)}


def progress_scalars(data: Trajectories, step: int) -> dict[str, float]:
    """What a publication shows of one checkpoint, as far as one checkpoint shows it, for a sweep that still runs.

    The names are those of a publication, so both are in the same view. The chosen top heads are missing: they are
    chosen over all checkpoints.
    """
    manifests = [cells.manifest(step) for cells in data.run.scores.values() if step in cells.steps()]
    row = _at(step, data.run.record.model.get("tokens_per_step"))
    here = [m for m in data.maps if m.summary and data.has(m.table)]
    for m, value_CH in zip(here, data.head_maps(here, [step], 1).values(), strict=True):
        row[metric(ALL, m.name)] = over_heads(value_CH[0], m)
    for curve in data.curves:
        if curve.over_training and data.has(curve.table):
            row[metric("icl", curve.over_training)] = last_points(data, curve).get(step, np.nan)
    for series in data.icl:
        if series.headline:
            row[metric("icl", series.name)] = float(series.value_C[-1])
    row["checkpoints/seconds"] = sum(m["seconds"]["measure"] for m in manifests)
    return _known(row)


def fill(opened: wandb.Run, data: Trajectories, emergence: dict[str, Any], figures: list[Path]) -> list[wandb.Artifact]:
    """Log everything, in step order; returns the artifacts, whose upload is under way."""
    run = data.run
    opened.define_metric("train_step", hidden=True)
    opened.define_metric("*", step_metric="train_step")
    failed, size = run.failed(), run.record.model.get("tokens_per_step")
    rows: dict[int, dict[str, Any]] = {int(row["train_step"]): dict(row) for row in headline_scalars(data, emergence)}
    for step in failed:
        rows.setdefault(step, _known(_at(step, size)))["checkpoints/failed"] = 1
    for step, pictures in _pictures(data, emergence).items():
        rows[step] |= pictures
    for _, row in sorted(rows.items()):
        opened.log(row)
    tables = {"onsets": emergence_table(emergence), "lags": lag_table(emergence), "heads": head_table(data, emergence)}
    opened.log({name: wandb.Table(dataframe=table) for name, table in tables.items() if len(table)})
    if failed:
        reasons = [[step, score, reason] for step, found in failed.items() for score, reason in found.items()]
        opened.log({"failed_checkpoints": wandb.Table(columns=["train_step", "score", "reason"], data=reasons)})
    opened.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in figures if f.suffix == ".png"})
    opened.summary["answer"] = emergence["answer"]
    opened.summary["failed_checkpoints"] = len(failed)
    for series in emergence["series"]:
        if series["series"] in emergence["headline"]:
            opened.summary[metric("onset_step", series["series"])] = series.get("t50_step")
    views = _artifact(f"{opened.group}-{run.name}-views", "views", view_files(run))
    results = _artifact(f"{opened.group}-{run.name}", "results", result_files(run))
    return [opened.log_artifact(artifact) for artifact in (views, results)]


def _artifact(name: str, kind: str, files: dict[str, Path]) -> wandb.Artifact:
    """Files are uploaded from where they lie: a copy of all results would stay in W&B's staging folder."""
    artifact = wandb.Artifact(name, type=kind)
    for place, file in files.items():
        artifact.add_file(str(file), name=place, policy="immutable", skip_cache=True)
    return artifact


def _pictures(data: Trajectories, emergence: dict[str, Any]) -> dict[int, dict[str, wandb.Image]]:
    """The heatmaps as images, each at its step: W&B's slider then runs through training."""
    maps = [m for m in data.maps if m.picture and data.has(m.table)]
    steps = telling(emergence, PICTURES)
    found: dict[int, dict[str, wandb.Image]] = {step: {} for step in steps}
    for m, value_CH in zip(maps, data.head_maps(maps, steps).values(), strict=True):
        shape = data.shape(data.tables[m.table])
        top = float(np.nanmax(value_CH)) if np.isfinite(value_CH).any() else 1.0
        for step, value_H in zip(steps, value_CH, strict=True):
            caption = (
                f"{m.label}, step {step:,}: layer 0 below, head 0 left; 0 (dark) to {top:.2f}; grey: too few events"
            )
            picture = coloured(value_H.reshape(shape), top or 1.0)
            found[step][metric("heatmaps", m.label)] = wandb.Image(picture, caption=caption)
    return found


def coloured(value_LH: np.ndarray, top: float) -> np.ndarray:
    """A heatmap of layers (upwards) by heads as pixels, (rows, columns, 3) bytes, about 480 wide."""
    import matplotlib

    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#dddddd")
    pixels = colours(np.ma.masked_invalid(value_LH[::-1] / top), bytes=True)[..., :3]
    size = max(4, 480 // max(value_LH.shape))
    return np.kron(pixels, np.ones((size, size, 1), dtype=np.uint8))


def emergence_table(emergence: dict[str, Any]) -> pd.DataFrame:
    """One row per headline series: its onset with the deciding interval, its bracket, and flags."""
    columns = ("series", "label", "emerged", "base", "top", "t50_step", "ci_jump_lo_log2", "ci_jump_hi_log2",
               "cell_lo_step", "cell_hi_step", "p_emergence")  # fmt: skip
    return pd.DataFrame(
        [
            {name: row.get(name) for name in columns} | {"flags": ", ".join(row["flags"])}
            for row in emergence["series"]
            if row["series"] in emergence["headline"]
        ]
    )


def lag_table(emergence: dict[str, Any]) -> pd.DataFrame:
    """One row per pair of headline series that both have an onset."""
    columns = ("heads", "icl", "lag_oct", "ci_jump_lo", "ci_jump_hi", "decision", "reason", "p_coincidence",
               "p_residual")  # fmt: skip
    shown = set(emergence["headline"])
    return pd.DataFrame(
        [{name: p.get(name) for name in columns} for p in emergence["pairs"]
         if {p["heads"], p["icl"]} <= shown and p["lag_oct"] is not None],
        columns=list(columns),
    )  # fmt: skip


def head_table(data: Trajectories, emergence: dict[str, Any]) -> pd.DataFrame:
    """The heads that matter, at most HEADS rows: those chosen for a headline series, then those that emerge.

    `peak` is the highest value at any checkpoint, and `last` the one at the last, with the largest null there; all on
    the half of the documents that the head was not chosen on.
    """
    onset = {
        (row["series"], head): step
        for row in emergence["heads"]
        for head, step in zip(row["emerged"], row["t50_step"], strict=True)
    }
    chosen = [(name, head["head"]) for head in emergence["roles"] for name in head["series"]]
    others = sorted((key for key in onset if key not in set(chosen)), key=lambda key: onset[key])
    rows: list[dict[str, Any]] = []
    for series, head in [*chosen, *others][:HEADS]:
        sums = data.head_sums[series]
        value_C, null_C = sums.of_head(head)
        seen = np.flatnonzero(np.isfinite(value_C))
        peak = seen[value_C[seen].argmax()] if len(seen) else None
        layer, number = map(int, head[1:].split("H"))
        rows.append({
            "head": head, "layer": layer, "number": number, "series": series,
            "role": "chosen" if (series, head) in set(chosen) else "emerges",
            "onset_step": onset.get((series, head)),
            "peak": None if peak is None else float(value_C[peak]),
            "peak_step": None if peak is None else int(data.steps[peak]),
            "last": _finite(value_C[-1]), "last_null": _finite(null_C[-1]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def view_files(run: Run) -> dict[str, Path]:
    """Every view that a publication carries, by its name in it."""
    own = (*_OWN, RECORD)
    files = [f for f in run.root.iterdir() if f.is_file() and f.name not in own and not f.name.startswith(".")]
    return {f.name: f for f in sorted(files)}


def result_files(run: Run) -> dict[str, Path]:
    """Every result that a publication carries, by its name in it: the record, and the cells that the run shows.

    They are an artifact of their own: it is uploaded anew only when a cell has changed. The manifests in it say what
    each cell was measured on.
    """
    files = [run.root / RECORD]
    for cells in run.scores.values():
        if cells.root.is_dir():
            files += [f for f in cells.root.iterdir() if f.is_file() and not f.name.startswith(".")]
        for step in cells.steps():
            files += (cells.root / folder_name(step)).iterdir()
    return {str(f.relative_to(run.root)): f for f in sorted(files)}


def provenance(run: Run) -> dict[str, Any]:
    """What the results were measured on, for the run's config; the artifact's manifests have the weights' sha256."""
    steps = run.steps()
    return {
        "settings": run.record.settings,
        "versions": run.manifest(steps[0])["versions"],
        "checkpoints": len(steps),
        "failed_steps": len(run.failed()),
    }


def read_back(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of an offline run, through `wandb leet inspect`; the one place that reads W&B's own format."""
    found = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    records = (json.loads(line) for line in found.stdout.splitlines() if line.strip())
    return [record["history"]["item"] for record in records if record["type"] == "history"]
