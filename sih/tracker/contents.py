"""What a publication shows: the store, as numbers, tables, pictures and files for Weights & Biases."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wandb

from sih.store import Store
from sih.trajectories import Trajectories

# Files of the store that belong to one publication, not to the results.
_OWN = ("publication.json",)


def headline_scalars(trajectories: Trajectories) -> list[dict[str, float]]:
    """About ten numbers a checkpoint, and as many for each further family of relations; NaN left out.

    In step order, each with its `train_step` and `tokens`. `mean`, `per opportunity` and `gate rate` are means over
    all heads, of the relation index, of the index with unopened gates counted as 0, and of the share of opportunities
    at which the gate opens; the headline series itself is that of the chosen top heads.
    """
    pooled = _pooled(trajectories.relation_heads)
    rows = []
    for c, step in enumerate(trajectories.steps):
        manifest = trajectories.store.manifest(int(step))
        row: dict[str, float] = {"train_step": int(step), "tokens": manifest["tokens"]}
        for series in trajectories.headline:
            row[_key(series.kind, series.name)] = float(series.value_C[c])
            if series.null_C is not None:
                row[_key(series.kind, f"{series.name} null")] = float(series.null_C[c])
        for source, of_source in pooled.loc[step].iterrows():
            for name, value in of_source.items():
                row[_key("heads", f"relation_index ({source}) {name}")] = float(value)
        copying = trajectories.induction_heads.query("step == @step")["copying_score"]
        row["heads/copying_score max"] = float(copying.max())
        rows.append({k: v for k, v in row.items() if np.isfinite(v)})
    return rows


def _pooled(relation_heads: pd.DataFrame) -> pd.DataFrame:
    """Means over all heads by step and source, forward; of heads without an event the index is left out."""
    forward = relation_heads[relation_heads["direction"] == "forward"]
    forward = forward.assign(total=(forward["relation_index"] * forward["argmax_scored"]).fillna(0.0))
    columns = ["total", "argmax_events", "argmax_scored", "opportunities"]
    summed = forward.groupby(["step", "source", "layer", "head"])[columns].sum()
    by_head = pd.DataFrame(
        {
            "mean": summed["total"] / summed["argmax_scored"].where(summed["argmax_scored"] > 0),
            "per opportunity": summed["total"] / summed["opportunities"],
            "gate rate": summed["argmax_events"] / summed["opportunities"],
        }
    )
    return by_head.groupby(["step", "source"]).mean()


def progress_scalars(store: Store, step: int, headline_loss: str) -> dict[str, float]:
    """A few numbers of one checkpoint alone, for a sweep that still runs; `live/` keeps them apart."""
    manifest, icl = store.manifest(step), store.table(step, "icl")
    induction = store.table(step, "induction_heads")
    loss = icl[(icl["score"] == "loss_reduction") & (icl["task"] == headline_loss)]
    row = {
        "train_step": step,
        "tokens": manifest["tokens"],
        "live/seconds": sum(manifest["seconds"].values()),
        "live/prefix_matching_score max": induction["prefix_matching_score"].max(),
        "live/loss_reduction": loss["value"].mean(),
        **{
            f"live/{score}": icl.loc[icl["score"] == score, "value"].mean() for score in ("format_accuracy", "accuracy")
        },
    }
    heads = _pooled(store.table(step, "relation_heads").assign(step=step)).loc[step]
    row |= {f"live/relation_index ({source}) mean": value for source, value in heads["mean"].items()}
    return {k: float(v) for k, v in row.items() if np.isfinite(v)}


def _key(kind: str, name: str) -> str:
    return f"{kind}/{name.replace('/', ' ')}"


def fill(run: wandb.Run, trajectories: Trajectories, emergence: dict[str, Any], figures: list[Path]) -> wandb.Artifact:
    """Log everything, in step order; returns the artifact that is on its way."""
    store = trajectories.store
    run.define_metric("train_step", hidden=True)
    run.define_metric("*", step_metric="train_step")
    failed = store.failed()
    rows = {row["train_step"]: row for row in headline_scalars(trajectories)}
    rows |= {step: {"train_step": step, "checkpoints/failed": 1} for step in failed}
    for _, row in sorted(rows.items()):
        run.log(row)
    run.log({"head scores": wandb.Table(dataframe=_head_scores(trajectories))})
    run.log({"emergence": wandb.Table(dataframe=emergence_table(emergence))})
    if failed:
        reasons = [[step, reason] for step, reason in failed.items()]
        run.log({"failed checkpoints": wandb.Table(columns=["train_step", "reason"], data=reasons)})
    run.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in figures if f.suffix == ".png"})
    run.summary["answer"] = emergence["answer"]
    run.summary["failed_checkpoints"] = len(failed)
    for series in emergence["series"]:
        if series["series"] in emergence["headline"]:
            run.summary[f"onset_step/{series['series'].replace('/', ' ')}"] = series.get("t50_step")
    artifact = wandb.Artifact(f"{run.group}-{store.root.name}", type="results")
    for name, file in result_files(store).items():
        artifact.add_file(str(file), name=name)
    return run.log_artifact(artifact)


def emergence_table(emergence: dict[str, Any]) -> pd.DataFrame:
    """A row a headline series: its onset with the deciding interval, its bracket, and flags."""
    columns = ("series", "emerged", "base", "top", "t50_step", "ci_jump_lo_log2", "ci_jump_hi_log2", "cell_lo_step",
               "cell_hi_step", "p_emergence")  # fmt: skip
    return pd.DataFrame(
        [
            {name: row.get(name) for name in columns} | {"flags": ", ".join(row["flags"])}
            for row in emergence["series"]
            if row["series"] in emergence["headline"]
        ]
    )


def result_files(store: Store) -> dict[str, Path]:
    """Every file of the store that a publication carries, by its name in it."""
    found: dict[str, Path] = {}
    for file in sorted(store.root.iterdir()):
        if file.is_dir() and (file / "manifest.json").exists():
            found |= {f"{file.name}/{table.name}": table for table in sorted(file.iterdir())}
        elif file.is_file() and file.name not in _OWN and not file.name.startswith("."):
            found[file.name] = file
    return found


def digest_of(store: Store) -> str:
    """sha256 over the names and bytes of the result files: two equal ones are the same publication."""
    total = hashlib.sha256()
    for name, file in result_files(store).items():
        with open(file, "rb") as data:
            total.update(f"{name}\0{hashlib.file_digest(data, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def provenance(store: Store) -> dict[str, Any]:
    """What the results were measured on, for the run's config."""
    manifests = {str(step): store.manifest(step) for step in store.steps()}
    first = next(iter(manifests.values()))
    return {
        "config_hash": first["config_hash"],
        "versions": first["versions"],
        "weights_sha256": {step: m["weights_sha256"] for step, m in manifests.items()},
        "failed_steps": {str(step): reason for step, reason in store.failed().items()},
    }


def _head_scores(trajectories: Trajectories) -> pd.DataFrame:
    """One row a step, head and relation, forward; induction scores joined to every one of them."""
    forward = trajectories.relation_heads.query("direction == 'forward'")
    table = forward.merge(trajectories.induction_heads, on=["step", "layer", "head"]).rename(
        columns={"step": "train_step"}
    )
    # W&B would cut a longer table without a word.
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
