"""The one loop: measure every chosen checkpoint, wherever it runs."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sih import CONF
from sih import model as models
from sih.checkpoints import Checkpoint, Sha256, Source, file_state
from sih.checkpoints.schedule import choose, in_ranges, tokens_of
from sih.checkpoints.sources import open_source
from sih.checkpoints.tiny import held_out
from sih.claims import Claims
from sih.config import Config, config_hash, model_name
from sih.errors import CheckpointError, SihError
from sih.measurement import Inputs, measure, prepare
from sih.results import Results, locate
from sih.store import Store, csv_text, folder_name, jsonl
from sih.tracker.live import live_run

VERSIONS = ("sih", "torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow")


@dataclass(frozen=True)
class Work:
    """What a sweep, begun at `since`, has before it: `todo` of the chosen `steps`, without the audit's `refused`."""

    config: Config
    results: Results
    source: Source
    hashes: Sha256
    steps: list[int]
    todo: list[int]
    refused: dict[int, str]
    since: datetime

    def measured(self, step: int) -> bool:
        """Whether the step has a result that counts, whoever measured it: see is_measured."""
        return is_measured(self.results.store, step, self.config, self.since)


def survey(config: Config, console: Console, since: datetime | None = None) -> Work:
    """Open the checkpoints, look at what is measured already, and say so.

    Args:
        since: when the sweep began whose part this is, and which has compared the kept results with the weights.

    Raises:
        SihError: no such checkpoints, or kept results that are not these weights'.
    """
    results, hashes, part, since = locate(config), Sha256(), since is not None, since or datetime.now(UTC)
    source = _opened(config, hashes, console)
    steps = choose(config.steps, source.steps)
    done = set(results.store.steps())
    todo = [s for s in steps if not is_measured(results.store, s, config, since)]
    for step in set() if part else done & set(source.steps) - set(todo):  # the answer reads all of the store
        _still_the_same(results.store, source, step)
    console.print(
        f"[bold]{model_name(config.model)}[/bold]: {len(steps)} checkpoints, step {steps[0]} to {steps[-1]}: "
        f"{len(steps) - len(todo)} kept, {len(todo)} to measure"
    )
    refused = {} if config.checkpoints.allow_suspect else _refused(results.store, source, steps, todo)
    if refused:
        console.print(
            f"[red]Left out by the audit:[/red] steps {in_ranges(list(refused), source.steps)}. "
            "Why: python -m sih.audit",
            highlight=False,
        )
    return Work(config, results, source, hashes, steps, [s for s in todo if s not in refused], refused, since)


def is_measured(store: Store, step: int, config: Config, since: datetime) -> bool:
    """Whether a step has a result; with force, one that is not older than `since`."""
    try:
        measured_at = store.manifest(step)["measured_at"]
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not config.force or datetime.fromisoformat(measured_at) >= since


def _opened(config: Config, hashes: Sha256, console: Console) -> Source:
    """The configured checkpoints, with a bar for what has to be done once: training, or an audit of the Hub."""
    with bar_of(console) as bar:
        task = bar.add_task("", total=None, visible=False)

        def trained(step: int, total: int, loss: float) -> None:
            bar.update(task, completed=step, total=total, visible=True, description=f"training once, loss {loss:.2f}")

        def audited(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True, description="auditing the Hub's revisions")

        return open_source(config, hashes, trained, audited)


def _refused(store: Store, source: Source, steps: list[int], todo: list[int]) -> dict[int, str]:
    """Of `todo` the steps that the audit convicts, with what is said of them; recorded in the store as failed.

    Raises:
        SihError: it convicts all there is to answer from, or a step that was measured before it did.
    """
    unmarked = [s for s in store.steps() if s in source.suspect and s not in {*todo, *store.suspect()}]
    if unmarked:
        raise SihError(
            f"step {unmarked[0]} in {store.root} was measured before the audit convicted it "
            f"({source.suspect[unmarked[0]]}): delete {store.root / folder_name(unmarked[0])}, "
            "or keep it with checkpoints.allow_suspect=true"
        )
    refused = {
        step: f"refused, {source.suspect[step]}; to measure it all the same: checkpoints.allow_suspect=true"
        for step in todo
        if step in source.suspect
    }
    if refused and len(refused) == len(steps) and not store.steps():
        raise SihError(
            f"the audit convicts every chosen step: {', '.join(f'{s}: {source.suspect[s]}' for s in steps[:3])}"
            f"{' ...' if len(steps) > 3 else ''}. See python -m sih.audit; "
            "to measure them all the same: checkpoints.allow_suspect=true"
        )
    for step, reason in refused.items():
        store.write_failure(step, reason)
    return refused


def bar_of(console: Console) -> Progress:
    """A progress bar, gone when it is done."""
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


def _still_the_same(store: Store, source: Source, step: int) -> None:
    """Raises SihError when the step's weights are no longer those its kept result was measured on."""
    manifest = store.manifest(step)
    if manifest["config_hash"] != store.root.name:
        raise SihError(
            f"step {step} in {store.root} has the config hash {manifest['config_hash']}: it was put there by hand"
        )
    if reason := source.changed(step, manifest["weights_sha256"], manifest["weights_files"]):
        raise SihError(
            f"step {step} in {store.root} was measured on other weights: {reason}. "
            f"Measure it again with steps=[{step}] force=true"
        )


def measure_all(work: Work, device: torch.device, console: Console, wait: bool = True) -> dict[int, str]:
    """Measure and store every step of `work.todo`; returns the failed ones with their reasons.

    Steps that another living process is measuring are left to it; with `wait`, until they are done or it is dead.
    """
    config, store, failures = work.config, work.results.store, dict[int, str]()
    inputs: Inputs | None = None
    with ExitStack() as stack:
        claims = stack.enter_context(closing(Claims(store.root, config.launcher.stale_after, *_batch_job())))
        bar = stack.enter_context(bar_of(console))
        task = bar.add_task("preparing", total=len(work.todo))
        live = stack.enter_context(live_run(config, store, console))

        def waiting(step: int, there: int, total: int) -> None:
            bar.update(task, description=f"step {step}: fetching {there / 1e6:,.0f} of {total / 1e6:,.0f} MB")

        def one(step: int, checkpoint: Checkpoint | CheckpointError) -> bool:
            """Whether the step is dealt with: measured here or meanwhile elsewhere, or failed."""
            nonlocal inputs
            say = lambda what: bar.update(task, description=f"step {step}: {what}")  # noqa: E731
            started = time.perf_counter()
            try:
                if isinstance(checkpoint, CheckpointError):
                    raise checkpoint
                if inputs is None:
                    say("drawing examples")
                    inputs = _inputs(work, checkpoint, device)
                    _report_exclusions(inputs, console)
                if not _claimed(store, claims, step):
                    return False
                try:
                    store.recover(step)
                    if work.measured(step):
                        return True
                    inputs = _measure_one(work, checkpoint, inputs, device, say)
                finally:
                    claims.release(step)
                live(step)
                if not console.is_terminal:
                    console.print(f"step {step} measured in {time.perf_counter() - started:.1f} s")
            except CheckpointError as error:
                if work.measured(step):  # meanwhile, elsewhere
                    return True
                failures[step] = str(error)
                store.write_failure(step, str(error))
            return True

        left = list(work.todo)
        while left:
            held = []
            with closing(work.source.stream(left, waiting)) as checkpoints:
                for step, checkpoint in checkpoints:
                    if one(step, checkpoint):
                        bar.advance(task)
                    else:
                        held.append(step)
            while wait and held and all(holders := [claims.holder(step) for step in held]):
                bar.update(task, description=f"step {held[0]}: measured by {holders[0]}")
                time.sleep(1)
            left = [step for step in held if not work.measured(step)] if wait else []
            bar.advance(task, len(held) - len(left))
    return failures


def _batch_job() -> tuple[str | None, int]:
    """SLURM's number of the job that this process belongs to, if any, and how often it was requeued."""
    return os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _claimed(store: Store, claims: Claims, step: int) -> bool:
    try:
        return claims.take(step)
    except OSError as error:
        raise SihError(store.cannot_write(error)) from None


def _inputs(work: Work, checkpoint: Checkpoint, device: torch.device) -> Inputs:
    """Draw what is measured on with the first checkpoint's tokenizer and context, and open the store with it."""
    config, results = work.config, work.results
    documents = None
    if config.model.source == "tiny":
        assert config.model.train is not None
        count = max(config.relations.generated.documents, config.icl.loss.documents)
        documents = held_out(config.model.train, config.model.seed, count)
    inputs = prepare(
        config,
        results.files,
        models.checked_tokenizer(checkpoint.folder),
        work.hashes.of(models.tokenizer_file(checkpoint.folder)),
        models.context_of(checkpoint.folder),
        config.batch_tokens or models.tokens_in_a_pass(checkpoint.folder, device),
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
                    "triplets": [{k: v for k, v in vars(t).items() if v != ()} for t in e.triplets],
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
    work: Work, checkpoint: Checkpoint, inputs: Inputs, device: torch.device, say: Callable[[str], None]
) -> Inputs:
    """Returns the inputs, in smaller batches where memory ran out."""
    config, results, hashes = work.config, work.results, work.hashes
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
    while True:
        try:
            tables, seconds = measure(model, inputs, config, say)
            break
        except RuntimeError as error:
            if not models.is_out_of_memory(error):
                raise
            if inputs.batch_tokens // 2 < models.FEWEST_TOKENS:
                raise CheckpointError(f"out of memory with {inputs.batch_tokens} tokens in a pass: {error}") from None
        inputs = inputs.halved()  # outside of the handler, whose traceback holds on to the failed pass
        if device.type == "cuda":
            torch.cuda.empty_cache()
    say("writing")
    manifest: dict[str, Any] = {
        "model": model_name(config.model),
        "revision": checkpoint.revision,
        "commit_sha": checkpoint.commit_sha,
        "weights_sha256": weights_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        "weights_files": {f.name: file_state(f) for f in files},
        "suspect": work.source.suspect.get(checkpoint.step),
        "step": checkpoint.step,
        "tokens": tokens_of(checkpoint.step, config.model.tokens_per_step),
        "dtype": config.dtype,
        "batch_tokens": inputs.batch_tokens,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "data_sha256": results.data_sha256,
        "config_hash": config_hash(results.measured),
        "seed": config.seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "git_commit": _git_commit(),
        "host": platform.node(),
        "measured_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": {"load": round(loaded, 3), **seconds},
    }
    results.store.write(checkpoint.step, tables, manifest)
    return inputs


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
