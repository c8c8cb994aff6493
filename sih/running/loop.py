"""The one loop: measure every missing cell of the chosen checkpoints, wherever it runs."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from sih.checkpoints import Checkpoint
from sih.checkpoints.corpus import Document
from sih.checkpoints.files import tokenizer_files
from sih.checkpoints.local import REMOVED
from sih.checkpoints.tiny import held_out
from sih.errors import CheckpointError, SihError
from sih.models import loading, memory
from sih.models.exhausted import is_out_of_memory
from sih.models.model import Model
from sih.models.selfcheck import self_check
from sih.models.tokenizer import checked_tokenizer, start_id
from sih.results.cells import Cells, folder_name
from sih.results.claims import Claims
from sih.running.bars import bar_of
from sih.running.following import followed_series, rankings
from sih.running.manifest import manifest_of
from sih.running.progress import typical_seconds
from sih.running.survey import Work
from sih.scores import Drawn, Given, HeadMap, Ranking, Series, described, followed_by
from sih.texts.written import csv_text
from sih.tracker.live import Live, live_run

# measure(work, wait): see measure_all.
Measure = Callable[..., dict[int, str]]


def measure_all(work: Work, device: torch.device, console: Console, wait: bool = True) -> dict[int, str]:
    """Measure and keep every missing cell of `work.todo`; returns the steps that still lack one, with the reasons.

    Scores that follow heads come in a second pass over the checkpoints, when those that choose the heads are done.

    Cells that another process is measuring are left to it as long as it lives. With `wait`, this returns only when
    they are measured; without, as soon as that process has shown that it is alive. What a second pass needs is waited
    for.
    """
    with measuring(work, device, console) as measure:
        return measure(work, wait)


@contextmanager
def measuring(work: Work, device: torch.device, console: Console) -> Iterator[Measure]:
    """A function like measure_all, of one run: what is drawn, the live view and the bar last for all its calls."""
    config, run = work.config, work.run
    with ExitStack() as stack:
        claims = stack.enter_context(closing(Claims(run.root, config.launcher.stale_after, *_batch_job())))
        bar = stack.enter_context(bar_of(console))
        live = stack.enter_context(live_run(config.tracker, run, config.emergence, console))
        loop = _Loop(work, device, console, claims, bar, live)

        def measure(work: Work, wait: bool = True) -> dict[int, str]:
            failed: dict[int, str] = {}
            stages = work.stages()
            for stage in stages:
                for step, reason in loop.run(stage, wait or stage is not stages[-1]).items():
                    failed[step] = f"{failed[step]}; {reason}" if step in failed else reason
            return {step: failed[step] for step in sorted(failed) if step in work.todo}

        yield measure


def _batch_job() -> tuple[str | None, int]:
    """SLURM's number of the job that this process belongs to, if any, and how often it was requeued."""
    return os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def label_of(step: int, cells: Cells) -> str:
    """The label under which a cell is claimed."""
    return f"{folder_name(step)}.{cells.root.parent.name}-{cells.root.name}"


class _Loop:
    """One process that works through its steps, among others that share the run's folder."""

    def __init__(
        self, work: Work, device: torch.device, console: Console, claims: Claims, bar: Progress, live: Live
    ) -> None:
        self.work, self.device, self.console, self.claims, self.live = work, device, console, claims, live
        self.bar, self.task = bar, bar.add_task("preparing", total=0)
        self.total, self.failed = 0, set[int]()
        self.drawn: dict[str, Drawn] = {}  # by score, drawn with the first available checkpoint
        self.tokenizer_sha256 = ""  # of the tokenizer that they are drawn with
        self.layout_error: float | None = None  # of the self-check, once for the series
        self.held_out: list[Document] = []  # of the embedded series
        self.batch_tokens = work.config.batch_tokens

    def run(self, work: Work, wait: bool = True) -> dict[int, str]:
        self.work, self.failed, left = work, set(), list(work.todo)
        self.total += len(left)
        self.bar.update(self.task, total=self.total, pace=typical_seconds(work.run.scores, work.run.steps()))
        while left:
            held: dict[int, dict[str, float | None]] = {}  # by step, when each cell's holder last gave a sign of life
            with closing(self.work.source.stream(left, self._fetching, self._elsewhere)) as checkpoints:
                for step, checkpoint in checkpoints:
                    if self._dealt_with(step, checkpoint):
                        self.bar.advance(self.task)
                    else:
                        held[step] = self._touched(step)
            left = self._given_up(held, wait)
            self.bar.advance(self.task, len(held) - len(left))
        self.bar.update(self.task, description="waiting for the next checkpoint")  # seen only while watching
        return {step: self.work.failure(step) or "no result" for step in sorted(self.failed)}

    def _say(self, step: int, what: str) -> None:
        self.bar.update(self.task, description=f"step {step}: {what}")

    def _fetching(self, step: int, there: int, total: int) -> None:
        self._say(step, f"fetching {there / 1e6:,.0f} of {total / 1e6:,.0f} MB")
        self.bar.update(self.task, each=total)

    def _elsewhere(self, step: int) -> bool:
        """Whether the checkpoint is not needed here: another process holds each of its missing cells."""
        return all(self.claims.holder(cell) is not None for cell in self._cells(step))

    def _cells(self, step: int) -> list[str]:
        """The labels of a step's missing cells."""
        return [label_of(step, self.work.cells(score)) for score in self.work.missing(step)]

    def _holder(self, step: int) -> str | None:
        """Who holds the step's missing cells (the first holder); None when nothing is missing or a cell is free."""
        cells = self._cells(step)
        holders = [self.claims.holder(cell) for cell in cells]
        return holders[0] if holders and all(holders) else None

    def _touched(self, step: int) -> dict[str, float | None]:
        return {cell: self.claims.touched(cell) for cell in self._cells(step)}

    def _alive(self, touched: dict[str, float | None]) -> bool:
        """Whether every holder of these cells has given a sign of life since."""
        return all(self.claims.touched(cell) not in (at, None) for cell, at in touched.items())

    def _given_up(self, held: dict[int, dict[str, float | None]], wait: bool) -> list[int]:
        """Wait, and return the held steps that their holders left without a result, as soon as there may be one."""
        while held and all(holders := [self._holder(step) for step in held]):
            self._say(next(iter(held)), f"measured by {holders[0]}")
            time.sleep(1)
            if not wait:
                held = {step: touched for step, touched in held.items() if not self._alive(touched)}
        return [step for step in held if not self.work.measured(step)]

    def _dealt_with(self, step: int, checkpoint: Checkpoint | CheckpointError | None) -> bool:
        """Whether the step is done: measured, here or elsewhere, or failed. False while another process holds it."""
        try:
            if checkpoint is None:
                return self.work.measured(step)
            if isinstance(checkpoint, CheckpointError):
                raise checkpoint
            return self._unless_removed(step, checkpoint)
        except CheckpointError as error:
            missing = self.work.missing(step)
            if not missing:
                return True
            if self._holder(step):  # perhaps that process can read it
                return False
            for score in missing:
                self._failed(step, score, str(error))
            return True

    def _unless_removed(self, step: int, checkpoint: Checkpoint) -> bool:
        """`_measured`; names a local folder that vanishes meanwhile, as where a trainer keeps the last few, as such."""
        try:
            return self._measured(step, checkpoint)
        except (CheckpointError, FileNotFoundError) as error:
            # Files go before their folder does.
            file = Path(str(getattr(error, "filename", None) or checkpoint.folder))
            if checkpoint.folder.is_dir() and (checkpoint.folder not in file.parents or file.exists()):
                raise
            raise CheckpointError(REMOVED) from error

    def _failed(self, step: int, score: str, reason: str) -> None:
        self.work.cells(score).write_failure(step, reason)
        self.failed.add(step)

    def _measured(self, step: int, checkpoint: Checkpoint) -> bool:
        """Measure the step's free cells. True when all its cells are measured or failed; not if another is held."""
        started = time.perf_counter()
        missing = self.work.missing(step)
        self._draw(step, missing, checkpoint)
        taken = [score for score in missing if self._take(step, score)]
        failed = set()
        try:
            for score in taken:
                self.work.cells(score).recover(step)
            wanted = [score for score in taken if score in self.work.missing(step)]
            if wanted:
                failed = self._measure(step, wanted, checkpoint)
        finally:
            for score in taken:
                self.claims.release(label_of(step, self.work.cells(score)))
        if wanted and not failed >= set(wanted):
            self.live(step)
            if not self.console.is_terminal:
                self.console.print(f"step {step} measured in {time.perf_counter() - started:.1f} s")
        return set(self.work.missing(step)) <= failed

    def _take(self, step: int, score: str) -> bool:
        try:
            return self.claims.take(label_of(step, self.work.cells(score)))
        except OSError as error:
            raise SihError(self.work.run.cannot_write(error)) from None

    def _draw(self, step: int, scores: list[str], checkpoint: Checkpoint) -> None:
        """Draw what each score is measured on, with this checkpoint's tokenizer and context, and open its folder."""
        wanted = [score for score in scores if score not in self.drawn]
        if not wanted:
            return
        self._say(step, "drawing examples")
        work, folder = self.work, checkpoint.folder
        tokenizer, shape = checked_tokenizer(folder), loading.shape_of(folder)
        self.tokenizer_sha256 = work.hashes.of_all(tokenizer_files(folder))
        self.batch_tokens = self.batch_tokens or memory.tokens_in_a_pass(folder, self.device)
        token = work.config.model.document_start
        start = start_id(tokenizer, token)
        if start is None and not self.drawn:
            why = "model.document_start is null" if token is None else f"the tokenizer has no {token}"
            self.console.print(f"Texts begin without a document start: {why}", style="dim", highlight=False)
        for name in wanted:
            score = work.scores[name]
            given = Given(
                tokenizer, len(tokenizer), shape.vocabulary, shape.context, work.config.seed,
                work.files[name], self._held_out, start, followed_series(work.run, followed_by(score)),
            )  # fmt: skip
            drawn = score.draw(given)
            description = described(score, drawn.facts)
            _check_description(name, description)
            texts = {**drawn.files, "left_out.csv": csv_text(["source", "reason", "count"], drawn.left_out)}
            work.cells(name).begin(work.settings[name], texts)
            work.cells(name).describe({"told": drawn.told, **description})
            self.drawn[name] = drawn
        told = [self.drawn[name].told for name in wanted if self.drawn[name].told]
        self.console.print(", ".join(told), highlight=False)
        for name in wanted:
            for source, reason, count in self.drawn[name].left_out:
                self.console.print(f"  left out, {source}: {reason}: {count:,}", style="dim", highlight=False)

    def _held_out(self, count: int) -> list[Document]:
        model = self.work.config.model
        if model.train is None:
            raise SihError(
                "only the embedded series, model=tiny, has held-out documents; "
                "name texts of your own, or choose relations=real icl=pythia"
            )
        if len(self.held_out) < count:
            self.held_out = held_out(model.train, model.seed, count)
        return self.held_out[:count]

    def _measure(self, step: int, scores: list[str], checkpoint: Checkpoint) -> set[str]:
        """Measure and keep the step's cells, one score after another; returns the scores that failed."""
        work, config = self.work, self.work.config
        started = time.perf_counter()
        self._say(step, "loading")
        shape = (config.model.layers, config.model.heads, config.model.width)
        model = loading.load(checkpoint.folder, self.device, config.dtype, shape)
        if work.hashes.of_all(tokenizer_files(checkpoint.folder)) != self.tokenizer_sha256:
            raise CheckpointError(f"{checkpoint.folder}: its tokenizer differs from the series' first checkpoint's")
        common = manifest_of(work, checkpoint, model, self.device, self.tokenizer_sha256, self._layout_error(model))
        loaded = round(time.perf_counter() - started, 3)
        failed = set()
        for name in scores:
            cells, started = work.cells(name), time.perf_counter()
            self._say(step, name.replace("_", " "))
            try:
                tables = self._tables(name, model, *self._rankings(name, step))
            except CheckpointError as error:
                self._failed(step, name, str(error))
                failed.add(name)
                continue
            if not self.claims.holds(label_of(step, cells)):  # this machine slept, and another process started over
                continue
            seconds = {"load": loaded, "measure": round(time.perf_counter() - started, 3)}
            cells.write(step, tables, common(name, cells, self.batch_tokens, seconds))
        return failed

    def _rankings(self, name: str, step: int) -> list[dict[str, Ranking]]:
        """What a score that follows heads is given besides; nothing for the others."""
        if following := followed_by(self.work.scores[name]):
            return [rankings(self.work.run, following, self.work.config.emergence, step, self.work.last)]
        return []

    def _layout_error(self, model: Model) -> float:
        """The largest error of the self-check, which the first model of the series goes through."""
        if self.layout_error is None:
            try:
                self.layout_error = max(self_check(model).values())
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise CheckpointError(f"out of memory with a few tokens in a pass: {error}") from None
        return self.layout_error

    def _tables(self, name: str, model: Model, *more: dict[str, Ranking]) -> Mapping[str, Any]:
        """One score's tables, with smaller passes when memory runs out."""
        score = self.work.scores[name]
        assert self.batch_tokens is not None
        while True:
            try:
                tables = score.measure(model, self.drawn[name].inputs, self.batch_tokens, *more)
                _check_tables(name, score.tables, tables)
                return tables
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch_tokens // 2 < memory.FEWEST_TOKENS:
                    raise CheckpointError(f"out of memory with {self.batch_tokens} tokens in a pass: {error}") from None
            self.batch_tokens //= 2  # outside the handler, whose traceback holds on to the failed pass
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def _check_tables(name: str, promised: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
    """Raises SihError when a score does not return the tables that it promises."""
    for table, columns in promised.items():
        if table not in tables:
            raise SihError(f"the score {name} returned no table {table}; it returned {', '.join(tables) or 'none'}")
        if lost := [column for column in columns if column not in tables[table].column_names]:
            raise SihError(
                f"the score {name} returned the table {table} without the column {lost[0]} that it promises; "
                f"it has {', '.join(tables[table].column_names)}"
            )


def _check_description(name: str, description: Mapping[str, Any]) -> None:
    """Raises SihError when a series or a map reads a table or column that the score does not have."""
    tables = description["tables"]
    for what, read in [("series", Series(**s)) for s in description["series"]] + [
        ("map", HeadMap(**m)) for m in description["maps"]
    ]:
        if read.table not in tables:
            raise SihError(
                f"the score {name} offers the {what} {read.name}, which reads the table {read.table}; "
                f"the score writes only {', '.join(tables)}"
            )
        if lost := [column for column in read.columns() if column not in tables[read.table]]:
            raise SihError(
                f"the score {name} offers the {what} {read.name}, which reads the column {lost[0]}; "
                f"tables[{read.table!r}] does not promise it"
            )
