"""Weights & Biases: a view of the store, rebuilt whole at every publication.

W&B cannot rewrite a run's history, so workers never log: each publication is a fresh run that reads the store.
"""

import json
import netrc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from sih.config import Config, TrackerConfig, model_name
from sih.errors import SihError
from sih.store import Store
from sih.trajectories import Trajectories


def check(config: TrackerConfig) -> None:
    """Refuse `mode=online` without a key before anything is measured. Raises SihError."""
    if config.mode == "online" and not _has_key():
        raise SihError(
            "tracker.mode=online needs a W&B key: run `wandb login` or set WANDB_API_KEY; "
            "or leave it offline and `wandb sync` later"
        )


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def headline_scalars(trajectories: Trajectories) -> list[dict[str, float]]:
    """About ten numbers a checkpoint, in step order, each with its `train_step` and `tokens`; NaN left out."""
    rows = []
    for c, step in enumerate(trajectories.steps):
        manifest = trajectories.store.manifest(int(step))
        row: dict[str, float] = {"train_step": int(step), "tokens": manifest["tokens"]}
        for series in trajectories.headline:
            row[_key(series.kind, series.name)] = float(series.value_C[c])
            if series.null_C is not None:
                row[_key(series.kind, f"{series.name} null")] = float(series.null_C[c])
        copying = trajectories.induction_heads.query("step == @step")["copying_score"]
        row["heads/copying_score max"] = float(copying.max())
        rows.append({k: v for k, v in row.items() if np.isfinite(v)})
    return rows


def _key(kind: str, name: str) -> str:
    return f"{kind}/{name.replace('/', ' ')}"


def publish(
    config: Config, store: Store, trajectories: Trajectories, emergence: dict[str, Any], figures: list[Path]
) -> list[str]:
    """Publish the store as one fresh run; returns what to tell the user. Nothing is measured or changed.

    Raises:
        SihError: W&B refused or could not be reached; the store is as it was.
    """
    tracker = config.tracker
    if tracker.mode == "disabled":
        return []
    name = model_name(config.model)
    try:
        run = wandb.init(
            project=tracker.project,
            entity=tracker.entity,
            dir=store.root,
            mode="online" if tracker.mode == "online" else "offline",
            group=name,
            job_type="publication",
            name=f"{name} {store.root.name}",
            tags=["current"],
            config=store.config | {"provenance": _provenance(store)},
            settings=wandb.Settings(init_timeout=tracker.init_timeout, silent=True, console="off", disable_git=True),
        )
        with run:
            _fill(run, store, trajectories, emergence, figures)
    except wandb.errors.Error as error:
        raise SihError(
            f"W&B could not be reached or refused ({str(error).splitlines()[0]}); every result is in {store.root}. "
            "Publish with python -m sih.publish and the same options"
        ) from None
    folder = Path(run.dir).parent
    url = run.url if tracker.mode == "online" else None
    store.write_text("publication.json", json.dumps({"run": run.id, "folder": folder.name, "url": url}) + "\n")
    if url:
        return [f"Dashboard:  {url}"]
    beside = Path(sys.executable).parent / "wandb"  # in a virtual environment that is not active
    wandb_command = "wandb" if shutil.which("wandb") or not beside.exists() else os.path.relpath(beside)
    here = os.path.relpath(folder)
    return [
        "Dashboard, in the terminal without an account, or on wandb.ai:",
        f"  {wandb_command} leet run {here}",
        f"  {wandb_command} sync {here}",
    ]


def _fill(
    run: wandb.Run, store: Store, trajectories: Trajectories, emergence: dict[str, Any], figures: list[Path]
) -> None:
    run.define_metric("train_step", hidden=True)
    run.define_metric("*", step_metric="train_step")
    for row in headline_scalars(trajectories):
        run.log(row)
    run.log({"head scores": wandb.Table(dataframe=_head_scores(trajectories))})
    run.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in figures if f.suffix == ".png"})
    run.summary["answer"] = emergence["answer"]
    for row in emergence["series"]:
        if row["series"] in emergence["headline"]:
            run.summary[f"onset_step/{row['series'].replace('/', ' ')}"] = row.get("t50_step")
    artifact = wandb.Artifact(f"{run.group}-{store.root.name}", type="results")
    for file in sorted(store.root.iterdir()):
        if file.is_dir() and (file / "manifest.json").exists():
            for table in sorted(file.iterdir()):
                artifact.add_file(str(table), name=f"{file.name}/{table.name}")
        elif file.is_file():
            artifact.add_file(str(file))
    run.log_artifact(artifact)


def _provenance(store: Store) -> dict[str, Any]:
    manifests = {str(step): store.manifest(step) for step in store.steps()}
    first = next(iter(manifests.values()))
    return {
        "config_hash": first["config_hash"],
        "versions": first["versions"],
        "weights_sha256": {step: m["weights_sha256"] for step, m in manifests.items()},
        "failed_steps": store.failed(),
    }


def _head_scores(trajectories: Trajectories):
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
