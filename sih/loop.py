"""The one loop: measure every chosen checkpoint, wherever it runs."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import Progress

from sih import CONF
from sih import model as models
from sih.bars import bar_of
from sih.checkpoints import Checkpoint, file_state
from sih.checkpoints.schedule import tokens_of
from sih.checkpoints.tiny import held_out
from sih.claims import Claims
from sih.config import config_hash, model_name
from sih.errors import CheckpointError, SihError
from sih.measurement import Inputs, measure, prepare
from sih.store import csv_text, jsonl
from sih.survey import Work
from sih.tracker.live import Live, live_run

VERSIONS = ("sih", "torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow")


def measure_all(work: Work, device: torch.device, console: Console, wait: bool = True) -> dict[int, str]:
    """Measure and store every step of `work.todo`; returns the failed ones with their reasons.

    Steps that another process is measuring are left to it as long as it lives: with `wait` until they are measured,
    without until it has shown that it does.
    """
    config, store = work.config, work.results.store
    with ExitStack() as stack:
        claims = stack.enter_context(closing(Claims(store.root, config.launcher.stale_after, *_batch_job())))
        bar = stack.enter_context(bar_of(console))
        live = stack.enter_context(live_run(config, store, console))
        return _Loop(work, device, console, claims, bar, live).run(wait)


def _batch_job() -> tuple[str | None, int]:
    """SLURM's number of the job that this process belongs to, if any, and how often it was requeued."""
    return os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))


class _Loop:
    """One process that goes over its steps, among others that share the store."""

    def __init__(
        self, work: Work, device: torch.device, console: Console, claims: Claims, bar: Progress, live: Live
    ) -> None:
        self.work, self.device, self.console, self.claims, self.live = work, device, console, claims, live
        self.store = work.results.store
        self.bar, self.task = bar, bar.add_task("preparing", total=len(work.todo))
        self.inputs: Inputs | None = None  # drawn with the first checkpoint that can be had
        self.failures: dict[int, str] = {}

    def run(self, wait: bool) -> dict[int, str]:
        left = list(self.work.todo)
        while left:
            held: dict[int, float | None] = {}  # by step, when its holder last gave a sign of life
            with closing(self.work.source.stream(left, self._fetching, self._elsewhere)) as checkpoints:
                for step, checkpoint in checkpoints:
                    if self._dealt_with(step, checkpoint):
                        self.bar.advance(self.task)
                    else:
                        held[step] = self.claims.touched(step)
            left = self._given_up(held, wait)
            self.bar.advance(self.task, len(held) - len(left))
        return self.failures

    def _say(self, step: int, what: str) -> None:
        self.bar.update(self.task, description=f"step {step}: {what}")

    def _fetching(self, step: int, there: int, total: int) -> None:
        self._say(step, f"fetching {there / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    def _elsewhere(self, step: int) -> bool:
        return self.work.measured(step) or self.claims.holder(step) is not None

    def _given_up(self, held: dict[int, float | None], wait: bool) -> list[int]:
        """Waits; returns the held steps that their holders left without a result, as soon as there may be one."""
        while held and all(holders := [self.claims.holder(step) for step in held]):
            self._say(next(iter(held)), f"measured by {holders[0]}")
            time.sleep(1)
            if not wait:
                held = {step: at for step, at in held.items() if self.claims.touched(step) in (at, None)}
        return [step for step in held if not self.work.measured(step)]

    def _dealt_with(self, step: int, checkpoint: Checkpoint | CheckpointError | None) -> bool:
        """Whether the step is measured, here or meanwhile elsewhere, or failed; not while another process holds it."""
        try:
            if checkpoint is None:
                return self.work.measured(step)
            if isinstance(checkpoint, CheckpointError):
                raise checkpoint
            return self._measured(step, checkpoint)
        except CheckpointError as error:
            if self.work.measured(step):
                return True
            if self.claims.holder(step):  # who can read it, perhaps
                return False
            self.failures[step] = str(error)
            self.store.write_failure(step, str(error))
            return True

    def _measured(self, step: int, checkpoint: Checkpoint) -> bool:
        """Whether the step has a result now; not when another process holds it."""
        started = time.perf_counter()
        if self.inputs is None:
            self._say(step, "drawing examples")
            self.inputs = _inputs(self.work, checkpoint, self.device)
            _report_exclusions(self.inputs, self.console)
        try:
            if not self.claims.take(step):
                return False
        except OSError as error:
            raise SihError(self.store.cannot_write(error)) from None
        try:
            self.store.recover(step)
            if self.work.measured(step):
                return True
            say = partial(self._say, step)
            self.inputs, tables, manifest = _measure_one(self.work, checkpoint, self.inputs, self.device, say)
            if not self.claims.holds(step):  # this machine slept, and somebody else began anew
                return False
            say("writing")
            self.store.write(step, tables, manifest)
        finally:
            self.claims.release(step)
        self.live(step)
        if not self.console.is_terminal:
            self.console.print(f"step {step} measured in {time.perf_counter() - started:.1f} s")
        return True


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
) -> tuple[Inputs, dict[str, pa.Table], dict[str, Any]]:
    """Returns the inputs, in smaller batches where memory ran out, the step's tables and their manifest."""
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
        except (RuntimeError, MemoryError) as error:
            if not models.is_out_of_memory(error):
                raise
            if inputs.batch_tokens // 2 < models.FEWEST_TOKENS:
                raise CheckpointError(f"out of memory with {inputs.batch_tokens} tokens in a pass: {error}") from None
        inputs = inputs.halved()  # outside of the handler, whose traceback holds on to the failed pass
        if device.type == "cuda":
            torch.cuda.empty_cache()
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
    return inputs, tables, manifest


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
