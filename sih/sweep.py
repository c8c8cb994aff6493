"""The one loop: measure every chosen checkpoint, then publish, relate and draw. `python -m sih.sweep`."""

import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sih import CONF, tracker
from sih import model as models
from sih.checkpoints import Checkpoint, Sha256, Source
from sih.checkpoints.schedule import choose
from sih.checkpoints.sources import open_source
from sih.checkpoints.tiny import held_out
from sih.config import Config, command, config_hash, model_name
from sih.correlate import correlate, show
from sih.errors import CheckpointError, SihError
from sih.figures import draw_all
from sih.measurement import Inputs, measure, prepare
from sih.results import Results, locate
from sih.store import Store, csv_text, jsonl

VERSIONS = ("sih", "torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow")


def run(config: Config) -> int:
    """Sweep; 0 when every chosen step has a result, 1 when some failed."""
    console = Console()
    tracker.check(config.tracker)
    device = models.choose_device(config.device)
    results = locate(config)
    source = _source(config, console)
    steps = choose(config.steps, source.steps)
    hashes = Sha256()
    done = results.store.steps()
    todo = [s for s in steps if config.force or s not in set(done)]
    kept = [s for s in steps if s not in set(todo)]
    for step in set(done) & set(source.steps) - set(todo):  # the answer reads all of the store
        _still_the_same(results.store, source, step, hashes)
    console.print(
        f"[bold]{model_name(config.model)}[/bold]: {len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}; "
        f"{len(kept)} measured before and kept, {len(todo)} to measure on {device}"
    )
    failures = _measure_all(config, results, source, todo, device, hashes, console) if todo else {}
    for step, reason in failures.items():
        console.print(f"[red]step {step} failed:[/red] {reason}", soft_wrap=True)
    if not results.store.steps():
        raise SihError("no checkpoint could be measured; the reasons are above")
    _conclude(config, results, console)
    return 1 if failures else 0


def _source(config: Config, console: Console) -> Source:
    with _bar(console) as bar:
        task = bar.add_task("training the embedded series (once)", total=None, visible=False)

        def progress(step: int, total: int, loss: float) -> None:
            bar.update(task, completed=step, total=total, visible=True, description=f"training once, loss {loss:.2f}")

        return open_source(config, progress)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _still_the_same(store: Store, source: Source, step: int, hashes: Sha256) -> None:
    """Raises SihError when the step's weights are no longer those its kept result was measured on."""
    manifest = store.manifest(step)
    if manifest["config_hash"] != store.root.name:
        raise SihError(
            f"step {step} in {store.root} has the config hash {manifest['config_hash']}: it was put there by hand"
        )
    reason = None
    commits: dict[int, str] | None = getattr(source, "commits", None)
    if commits is not None:
        if commits[step] != manifest["commit_sha"]:
            reason = f"the revision is now commit {commits[step][:12]}, it was {str(manifest['commit_sha'])[:12]}"
    else:
        files = {f.name: f for f in models.weight_files(source.open(step).folder)}
        untouched = {n: _state(f) for n, f in files.items()} == manifest["weights_files"]
        if not untouched and {n: hashes.of(f) for n, f in files.items()} != manifest["weights_sha256"]:
            reason = "the weights there now have another sha256"
    if reason:
        raise SihError(
            f"step {step} in {store.root} was measured on other weights: {reason}. "
            f"Measure it again with steps=[{step}] force=true"
        )


def _state(file: Path) -> list[int]:
    return [file.stat().st_size, file.stat().st_mtime_ns]


def _measure_all(
    config: Config,
    results: Results,
    source: Source,
    todo: list[int],
    device: torch.device,
    hashes: Sha256,
    console: Console,
) -> dict[int, str]:
    """Measure and store every step; returns the failed ones with their reasons."""
    store, failures = results.store, {}
    inputs: Inputs | None = None
    with _bar(console) as bar:
        task = bar.add_task("preparing", total=len(todo))
        for step in todo:
            say = lambda what, step=step: bar.update(task, description=f"step {step}: {what}")  # noqa: E731
            started = time.perf_counter()
            try:
                say("fetching")
                checkpoint = source.open(step)
                if inputs is None:
                    say("drawing examples")
                    inputs = _inputs(config, results, checkpoint, hashes)
                    _report_exclusions(inputs, console)
                _measure_one(config, results, checkpoint, inputs, device, hashes, say)
                if not console.is_terminal:
                    console.print(f"step {step} measured in {time.perf_counter() - started:.1f} s")
            except CheckpointError as error:
                failures[step] = str(error)
                store.write_failure(step, str(error))
            bar.advance(task)
    return failures


def _inputs(config: Config, results: Results, checkpoint: Checkpoint, hashes: Sha256) -> Inputs:
    """Draw what is measured on with the first checkpoint's tokenizer and context, and open the store with it."""
    documents = None
    if config.model.source == "tiny":
        assert config.model.train is not None
        count = max(config.relations.generated.documents, config.icl.loss.documents)
        documents = held_out(config.model.train, config.model.seed, count)
    inputs = prepare(
        config,
        results.files,
        models.checked_tokenizer(checkpoint.folder),
        hashes.of(models.tokenizer_file(checkpoint.folder)),
        models.context_of(checkpoint.folder),
        documents,
    )
    results.store.begin(
        results.measured,
        {
            "examples.jsonl": jsonl(
                {
                    "document": e.document,
                    "source": e.source,
                    "token_ids": e.token_ids,
                    "triplets": [vars(t) for t in e.triplets],
                }
                for e in inputs.examples
            ),
            "exclusions.csv": csv_text(["source", "reason", "count"], inputs.exclusions),
            "prompts.jsonl": jsonl(
                {
                    "task": p.task,
                    "shots": p.shots,
                    "token_ids": p.token_ids,
                    "gold_token_id": p.label_token_ids[p.gold],
                    "label_token_ids": p.label_token_ids,
                }
                for p in inputs.prompts
            ),
            "loss_texts.jsonl": jsonl({"document": d, "token_ids": ids} for d, ids in inputs.loss_texts),
        },
    )
    return inputs


def _report_exclusions(inputs: Inputs, console: Console) -> None:
    triplets = sum(len(e.triplets) for e in inputs.examples)
    console.print(
        f"{triplets} triplets in {len(inputs.examples)} texts, {len(inputs.prompts)} prompts, "
        f"{len(inputs.loss_texts)} texts for the loss"
    )
    for source, reason, count in inputs.exclusions:
        console.print(f"  left out, {source}: {reason}: {count:,}", style="dim")


def _measure_one(
    config: Config,
    results: Results,
    checkpoint: Checkpoint,
    inputs: Inputs,
    device: torch.device,
    hashes: Sha256,
    say,
) -> None:
    started = time.perf_counter()
    shape = (config.model.layers, config.model.heads, config.model.width)
    say("loading")
    model = models.load(checkpoint.folder, device, config.dtype, shape)
    tokenizer_sha256 = hashes.of(models.tokenizer_file(checkpoint.folder))
    if tokenizer_sha256 != inputs.tokenizer_sha256:
        raise CheckpointError(f"{checkpoint.folder}: another tokenizer than the series' first checkpoint's")
    files = models.weight_files(checkpoint.folder)
    weights_sha256 = {f.name: hashes.of(f) for f in files}
    loaded = time.perf_counter() - started
    tables, seconds = measure(model, inputs, config, say)
    say("writing")
    manifest: dict[str, Any] = {
        "model": model_name(config.model),
        "revision": checkpoint.revision,
        "commit_sha": checkpoint.commit_sha,
        "weights_sha256": weights_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        "weights_files": {f.name: _state(f) for f in files},
        "step": checkpoint.step,
        "tokens": checkpoint.step * config.model.tokens_per_step,
        "dtype": config.dtype,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "data_sha256": results.data_sha256,
        "config_hash": config_hash(results.measured),
        "seed": config.seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "git_commit": _git_commit(),
        "host": platform.node(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": {"load": round(loaded, 3), **seconds},
    }
    results.store.write(checkpoint.step, tables, manifest)


def _git_commit() -> str | None:
    """The commit of the checkout that sih runs from, with -dirty for changes; None when installed without git."""
    checkout = CONF.parent
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _conclude(config: Config, results: Results, console: Console) -> None:
    """Relate, draw, publish and answer; each is a view of the store and can be made again."""
    store = results.store
    with console.status("onsets and lags"):
        trajectories, emergence = correlate(store, config)
    with console.status("figures"):
        figures = draw_all(trajectories, emergence, store.root / "figures", model_name(config.model))
    console.print()
    show(emergence, console)
    with console.status("publishing"):
        published = tracker.publish(config, store, trajectories, emergence, figures)
    console.print(f"\nResults:    {store.root}/", soft_wrap=True, highlight=False)
    console.print(f"Figures:    {store.root}/figures/  (trajectories.png first)", soft_wrap=True, highlight=False)
    for line in published:
        console.print(line, soft_wrap=True, highlight=False)


main = command(run)

if __name__ == "__main__":
    main()
