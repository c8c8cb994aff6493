"""What a publication shows: the run, as numbers, tables, pictures and files for Weights & Biases."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wandb

from sih.results.cells import folder_name
from sih.results.heads import chosen_rows, mapped
from sih.results.run import Run
from sih.results.trajectories import Trajectories
from sih.scores import HeadMap, Series

# Files that belong to one publication or to the views, not to the results.
_OWN = ("publication.json", "views.json")


def headline_scalars(data: Trajectories, emergence: dict[str, Any]) -> list[dict[str, float]]:
    """The headline series at each checkpoint, their nulls, and the summaries of the head maps; NaN left out.

    In step order, each with its `train_step` and `tokens`. A head series is that of the chosen top heads; a summary
    is the mean or the maximum over all heads.
    """
    summaries = {m.name: _summary(data, m) for m in data.maps if m.summary and data.has(m.table)}
    rows = []
    shown = [row for row in emergence["series"] if row["series"] in emergence["headline"]]
    for c, step in enumerate(emergence["steps"]):
        row: dict[str, float] = {"train_step": step, "tokens": data.run.manifest(step)["tokens"]}
        for series in shown:
            row[_key(series["kind"], series["series"])] = series["value"][c]
            if series["null"] is not None:
                row[_key(series["kind"], f"{series['series']} null")] = series["null"][c]
        row |= _effect_scalars(emergence.get("effects"), step)
        for name, value_of_step in summaries.items():
            row[_key("heads", name)] = float(value_of_step.get(step, np.nan))
        rows.append({k: v for k, v in row.items() if v is not None and np.isfinite(v)})
    return rows


def _effect_scalars(effects: dict[str, Any] | None, step: int) -> dict[str, float]:
    """What each group's knock-out costs at a step, its interval, and the mean and largest cost of its control sets."""
    found: dict[str, float] = {}
    for row in (r for r in (effects or {"rows": ()})["rows"] if r["shown"] and step in effects["steps"]):
        at, name = effects["steps"].index(step), f"{row['group']} {row['outcome_label']}"
        ends = "controls_high" if row["sign"] > 0 else "controls_low"
        for what, column in (("", "effect"), (" low", "low"), (" high", "high"), (" controls", "controls"),
                             (" controls most", ends)):  # fmt: skip
            value = row[column][at]
            found[_key("cost", name + what)] = np.nan if value is None else row["sign"] * value
    return found


def _summary(data: Trajectories, wanted: HeadMap) -> pd.Series:
    """The mean or the maximum over heads of a map, by step; heads without an event are left out."""
    steps = [int(s) for s in data.steps]
    return _over_heads(data.head_map(wanted, steps, min_events=1), wanted)


def _over_heads(table: pd.DataFrame, wanted: HeadMap) -> pd.Series:
    return table.groupby("step")["value"].agg(wanted.summary)


def progress_scalars(run: Run, step: int) -> dict[str, float]:
    """A few numbers from one checkpoint, for a sweep that is still running; their names begin with `live/`.

    Summaries of the head maps, and the mean over rows of every headline series of in-context learning.
    """
    row: dict[str, float] = {"train_step": step, "tokens": run.manifest(step)["tokens"]}
    seconds = 0.0
    for score, description in run.descriptions().items():
        cells = run.scores[score]
        if step not in cells.steps():
            continue
        seconds += cells.manifest(step)["seconds"]["measure"]
        for wanted in (HeadMap(**m) for m in description["maps"]):
            if wanted.summary or wanted.picture:
                table = run.table(wanted.table, [step], wanted.columns())
                how = wanted.summary or "max"
                row[f"live/{wanted.name}{'' if wanted.summary else ' max'}"] = (
                    mapped(table, wanted, 1)["value"].agg(how)
                )  # fmt: skip
        for series in (Series(**s) for s in description["series"]):
            if series.kind == "icl" and series.headline:
                table = chosen_rows(run.table(series.table, [step], series.columns()), series.where)
                over = len(table) if series.count is None else table[series.count].sum()
                row[f"live/{series.name.replace('/', ' ')}"] = table[series.value].sum() / over if over else np.nan
    row["live/seconds"] = seconds
    return {k: float(v) for k, v in row.items() if np.isfinite(v)}


def _key(kind: str, name: str) -> str:
    return f"{kind}/{name.replace('/', ' ')}"


def fill(opened: wandb.Run, data: Trajectories, emergence: dict[str, Any], figures: list[Path]) -> wandb.Artifact:
    """Log everything, in step order; returns the artifact, whose upload is under way."""
    run = data.run
    opened.define_metric("train_step", hidden=True)
    opened.define_metric("*", step_metric="train_step")
    failed = run.failed()
    rows = {row["train_step"]: row for row in headline_scalars(data, emergence)}
    for step in failed:
        rows.setdefault(step, {"train_step": step})["checkpoints/failed"] = 1
    for _, row in sorted(rows.items()):
        opened.log(row)
    opened.log({"head scores": wandb.Table(dataframe=_head_scores(data))})
    opened.log({"emergence": wandb.Table(dataframe=emergence_table(emergence))})
    if failed:
        reasons = [[step, score, reason] for step, found in failed.items() for score, reason in found.items()]
        opened.log({"failed checkpoints": wandb.Table(columns=["train_step", "score", "reason"], data=reasons)})
    opened.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in figures if f.suffix == ".png"})
    opened.summary["answer"] = emergence["answer"]
    opened.summary["failed_checkpoints"] = len(failed)
    for series in emergence["series"]:
        if series["series"] in emergence["headline"]:
            opened.summary[f"onset_step/{series['series'].replace('/', ' ')}"] = series.get("t50_step")
    artifact = wandb.Artifact(f"{opened.group}-{run.name}", type="results")
    for name, file in result_files(run).items():
        artifact.add_file(str(file), name=name)
    return opened.log_artifact(artifact)


def emergence_table(emergence: dict[str, Any]) -> pd.DataFrame:
    """One row per headline series: its onset with the deciding interval, its bracket, and flags."""
    columns = ("series", "emerged", "base", "top", "t50_step", "ci_jump_lo_log2", "ci_jump_hi_log2", "cell_lo_step",
               "cell_hi_step", "p_emergence")  # fmt: skip
    return pd.DataFrame(
        [
            {name: row.get(name) for name in columns} | {"flags": ", ".join(row["flags"])}
            for row in emergence["series"]
            if row["series"] in emergence["headline"]
        ]
    )


def result_files(run: Run) -> dict[str, Path]:
    """Every file that a publication carries, by its name in it: the cells that the run shows, and the views."""
    files = [f for f in run.root.iterdir() if f.is_file() and f.name not in _OWN and not f.name.startswith(".")]
    for cells in run.scores.values():
        if cells.root.is_dir():
            files += [f for f in cells.root.iterdir() if f.is_file() and not f.name.startswith(".")]
        for step in cells.steps():
            files += (cells.root / folder_name(step)).iterdir()
    return {str(f.relative_to(run.root)): f for f in sorted(files)}


def provenance(run: Run) -> dict[str, Any]:
    """What the results were measured on, for the run's config."""
    manifests = run.manifests()
    firsts = {step: next(iter(by_score.values())) for step, by_score in manifests.items()}
    return {
        "settings": run.record.settings,
        "versions": next(iter(firsts.values()))["versions"],
        "weights_sha256": {str(step): m["weights_sha256"] for step, m in firsts.items()},
        "failed_steps": {str(step): found for step, found in run.failed().items()},
    }


def _head_scores(data: Trajectories) -> pd.DataFrame:
    """One row per step and head, with every head map."""
    steps = [int(s) for s in data.steps]
    columns = [
        data.head_map(m, steps, min_events=1).set_index(["step", "layer", "head"])["value"].rename(m.name)
        for m in data.maps
        if data.has(m.table)
    ]
    if not columns:
        return pd.DataFrame({"train_step": []})
    table = pd.concat(columns, axis=1).reset_index().rename(columns={"step": "train_step"})
    # W&B would silently cut a longer table.
    wandb.Table.MAX_ARTIFACT_ROWS = max(wandb.Table.MAX_ARTIFACT_ROWS, len(table))
    return table


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
