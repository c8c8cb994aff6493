"""What a sweep has to do: the chosen steps and scores, the cells that are missing, and what the audit refuses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from sih import __version__
from sih.checkpoints import Source
from sih.checkpoints.files import Sha256, sha256_of
from sih.checkpoints.schedule import choose, in_ranges
from sih.checkpoints.sources import identity, open_source
from sih.config import Config, folder_of, model_name
from sih.errors import SihError
from sih.results.cells import Cells, folder_name, key_of, why_failed
from sih.results.run import RECORD, Record, Run, runs_in
from sih.running.bars import bar_of
from sih.scores import files_of, followed_by, measured_options
from sih.scores.making import made


@dataclass(frozen=True)
class Work:
    """The work of a sweep that began at `since`.

    steps: the chosen steps. todo: those with a missing cell. refused: those that the audit convicts, which are not in
    `todo`, with the reason.
    scores, settings, files: by the score's name; the run's record has the keys of the settings too.
    """

    config: Config
    run: Run
    scores: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Path]]
    source: Source
    hashes: Sha256
    steps: list[int]
    todo: list[int]
    refused: dict[int, str]
    since: datetime

    def cells(self, score: str) -> Cells:
        """The cells of a chosen score, with this sweep's setting."""
        return self.run.cells(score, key_of(self.settings[score]))

    def missing(self, step: int) -> list[str]:
        """The chosen scores without a result that counts at a step; see is_measured."""
        return [
            s
            for s in self.scores
            if self.run.record.wants(s, step) and not is_measured(self.cells(s), step, self.config.force, self.since)
        ]

    def stages(self) -> "list[Work]":
        """The work in order: the scores that stand alone, then those that follow heads chosen by these.

        Heads are chosen at the last step too, so whoever measures a step of the second stage needs the last one.
        """
        later = {name for name, score in self.scores.items() if followed_by(score)}
        second = self._part([name for name in self.scores if name in later], self.todo)
        more = {self.last} & {*self.source.steps} - {*self.todo} - {*self.refused} if second.todo else set()
        first = self._part([name for name in self.scores if name not in later], sorted({*self.todo, *more}))
        return [part for part in (first, second) if part.todo]

    def _part(self, scores: list[str], steps: list[int]) -> "Work":
        part = replace(self, scores={name: self.scores[name] for name in scores})
        return replace(part, todo=[step for step in steps if part.missing(step)])

    @property
    def last(self) -> int:
        """The last step of the run that the audit does not convict, whichever part of it this is."""
        return last_of(self.run.record.steps, self.source.suspect)

    def measured(self, step: int) -> bool:
        """Whether every chosen score has a result, whoever measured it."""
        return not self.missing(step)

    def failure(self, step: int) -> str | None:
        """Why cells of a step failed, by score; scores with the same reason are named together. None if none failed."""
        return why_failed(step, {score: self.cells(score) for score in self.missing(step)}, len(self.scores))

    def forget_failures(self, steps: list[int]) -> None:
        """Forget why these steps failed, before they are tried again."""
        for score in self.scores:
            self.cells(score).forget_failures(steps)


def is_measured(cells: Cells, step: int, force: bool, since: datetime) -> bool:
    """Whether a cell has a result; with force, one that is not older than `since`."""
    try:
        measured_at = cells.manifest(step)["measured_at"]
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a damaged manifest
        return False
    return not force or datetime.fromisoformat(measured_at) >= since


def survey(config: Config, console: Console, since: datetime | None = None, source: Source | None = None) -> Work:
    """Open the checkpoints, look at what is measured already, and say so.

    Args:
        since: for a part of a sweep, when that sweep began; it has already compared kept results with the weights.
        source: the checkpoints, if they are open.

    Raises:
        SihError: no such checkpoints or scores, or kept results that were measured on other weights.
    """
    part, since = since is not None, since or datetime.now(UTC)
    scores, hashes = chosen_scores(config), Sha256()
    files = {name: files_of(score) for name, score in scores.items()}
    source = source or _opened(config, hashes, console)
    steps = choose(config.steps, source.steps)
    settings = {name: _setting(name, score, config, source.tokenizer, files[name]) for name, score in scores.items()}
    run = Run(folder_of(config), _record(config, source, steps, scores, settings))
    work = Work(config, run, scores, settings, files, source, hashes, steps, [], {}, since)
    if not part:
        if not config.force:
            _adopt(work, Path(config.output))
        _check_kept(work)
    todo = [s for s in steps if not work.measured(s)]
    cells = sum(len(work.missing(s)) for s in todo)
    console.print(
        f"[bold]{run.name}[/bold]: {len(steps)} checkpoints, step {steps[0]} to {steps[-1]}: "
        f"{len(steps) - len(todo)} kept, {len(todo)} to measure"
        + ("" if cells == len(todo) * len(scores) else f" ({_of_which(work, todo)})")
    )
    refused = {} if config.checkpoints.allow_suspect else _refused(source, todo)
    if refused and not part:
        _can_go_on_without(refused, work)
    for step, reason in refused.items():
        for score in work.missing(step):
            work.cells(score).write_failure(step, reason)
    if refused:
        console.print(
            f"[red]Left out by the audit:[/red] steps {in_ranges(list(refused), source.steps)}. "
            "Why: python -m sih.audit",
            highlight=False,
        )
    todo = [s for s in todo if s not in refused]
    return Work(config, run, scores, settings, files, source, hashes, steps, todo, refused, since)


def chosen_scores(config: Config) -> dict[str, Any]:
    """The chosen scores, without those that intervene where `interventions=none`."""
    scores = made(config.scores)
    if config.interventions == "none":
        scores = {name: score for name, score in scores.items() if not getattr(score, "intervenes", False)}
    if not scores:
        raise SihError("interventions=none leaves no score; choose other scores=, or interventions=log")
    return scores


def last_of(steps: Sequence[int], suspect: Mapping[int, str]) -> int:
    """The last step that is not suspect; the last of all where every one is."""
    return max((s for s in steps if s not in suspect), default=max(steps))


def _of_which(work: Work, todo: list[int]) -> str:
    """few_shot at 21, induction at 2: what is missing, by score."""
    count = {score: sum(score in work.missing(s) for s in todo) for score in work.scores}
    return ", ".join(f"{score} at {n}" for score, n in count.items() if n)


def _setting(name: str, score: Any, config: Config, tokenizer: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """Everything that the score's numbers depend on except the checkpoint; its sha256 gives the cells' key."""
    cls = type(score)
    return {
        "score": name,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "version": score.version,
        "options": measured_options(score),
        "texts_sha256": {role: sha256_of(path) for role, path in sorted(files.items())},
        "weights": identity(config.model),
        "tokenizer": tokenizer,
        "document_start": config.model.document_start,
        "seed": config.seed,
        "dtype": config.dtype,
    }


def intervened_at(config: Config, offered: list[int]) -> list[int]:
    """The steps at which heads are taken out.

    A model's own list is of its whole series. Of another series: those steps that it has, and its last.
    """
    steps = config.interventions
    if not isinstance(steps, str) and steps == config.model.default_interventions:
        steps = sorted({step for step in steps if step in offered} | {offered[-1]})
    return choose(steps, offered)


def _record(
    config: Config,
    source: Source,
    steps: list[int],
    scores: Mapping[str, Any],
    settings: dict[str, dict[str, Any]],
) -> Record:
    """What run.yaml will say; scores that the folder already shows stay if they are of the same weights.

    Completes the `settings` of scores that follow others: their numbers depend on the settings of these, and on which
    step is the last.
    """
    model = config.model
    intervening = [name for name, score in scores.items() if getattr(score, "intervenes", False)]
    at = intervened_at(config, source.steps) if intervening else []
    record = Record(
        model={
            "name": model_name(model), "source": model.source, "repo": model.repo, "seed": model.seed,
            "tokens_per_step": model.tokens_per_step, "licence": model.licence, "citation": model.citation,
            "notes": model.notes or [],
        },
        weights=identity(model),
        tokenizer=source.tokenizer,
        seed=config.seed,
        dtype=config.dtype,
        offered=list(source.steps),
        steps=list(steps),
        settings={name: key_of(setting) for name, setting in settings.items()},
        sih=__version__,
        only=dict.fromkeys(intervening, at),
        refused=[] if config.checkpoints.allow_suspect else sorted(source.suspect),
    )  # fmt: skip
    root = folder_of(config)
    if (root / RECORD).exists():
        record = together(root, record)
    elif root.is_dir() and list(root.glob("*/config.yaml")):
        Run.open(root)  # an older layout: says which version wrote it
    for name, score in scores.items():
        if following := followed_by(score):
            settings[name]["follows"] = {other: record.settings.get(other) for other in following}
            settings[name]["min_events"] = config.emergence.min_events
            settings[name]["last_step"] = last_of(record.steps, source.suspect)
    return replace(record, settings=record.settings | {name: key_of(settings[name]) for name in scores})


def together(root: Path, record: Record) -> Record:
    """The record, with the scores that the folder already shows if they are of the same weights.

    Raises:
        SihError: the folder is a run of another model, or has another version's layout.
    """
    if not (root / RECORD).exists():
        return record
    kept = Run.open(root).record
    if kept.model["name"] != record.model["name"]:
        raise SihError(
            f"{root} is a run of {kept.model['name']}, not of {record.model['name']}; choose another name= or output="
        )
    ground = ("weights", "tokenizer", "seed", "dtype")
    if any(getattr(kept, name) != getattr(record, name) for name in ground):
        return record
    return replace(
        record,
        settings=kept.settings | record.settings,
        steps=sorted({*kept.steps, *record.steps}),
        only=kept.only | record.only,
    )


def _opened(config: Config, hashes: Sha256, console: Console) -> Source:
    """The configured checkpoints, with a bar for what is done once: training, or an audit of the Hub."""
    with bar_of(console) as bar:
        task = bar.add_task("", total=None, visible=False)

        def trained(step: int, total: int, loss: float) -> None:
            bar.update(task, completed=step, total=total, visible=True, description=f"training once, loss {loss:.2f}")

        def audited(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True, description="auditing the Hub's revisions")

        return open_source(config.model, config.checkpoints, hashes, trained, audited, settled_only=config.watch)


def _adopt(work: Work, output: Path) -> None:
    """Link cells that another run in the same folder of runs already has, so that nothing is measured twice."""
    others = [run.root for run in runs_in(output) if run.root.resolve() != work.run.root.resolve()]
    for score in work.scores:
        mine = work.cells(score)
        for other in (Cells(root / score / mine.root.name) for root in others):
            for step in set(other.steps()) & set(work.steps) - set(mine.steps()):
                mine.adopt(step, other)


def _check_kept(work: Work) -> None:
    """Raises SihError when a kept result was measured on other weights, since the answer reads the whole run."""
    for score in work.scores:
        cells = work.cells(score)
        for step in set(cells.steps()) & set(work.source.steps):
            if step in work.steps and work.config.force:
                continue  # measured again
            _still_the_same(cells, work.source, step)
            if not work.config.checkpoints.allow_suspect:
                _not_convicted_since(cells, work.source, step)


def _not_convicted_since(cells: Cells, source: Source, step: int) -> None:
    """Raises SihError when the audit convicts a step that was measured before it did."""
    if step in source.suspect and cells.manifest(step).get("suspect") is None:
        raise SihError(
            f"step {step} in {cells.root} was measured before the audit convicted it ({source.suspect[step]}): "
            f"delete {cells.root / folder_name(step)}, or keep it with checkpoints.allow_suspect=true"
        )


def _still_the_same(cells: Cells, source: Source, step: int) -> None:
    """Raises SihError when the step's weights are no longer those its kept result was measured on."""
    try:
        manifest = cells.manifest(step)
    except ValueError:  # damaged: measured again
        return
    if manifest["key"] != cells.root.name:
        raise SihError(f"step {step} in {cells.root} has the key {manifest['key']}: it was put there by hand")
    if reason := source.changed(step, manifest["weights_sha256"], manifest["weights_files"]):
        raise SihError(
            f"step {step} in {cells.root} was measured on other weights: {reason}. "
            f"Measure it again with steps=[{step}] force=true"
        )


def _refused(source: Source, todo: list[int]) -> dict[int, str]:
    """The steps of `todo` that the audit convicts, with the reason."""
    all_the_same = "to measure it anyway: checkpoints.allow_suspect=true"
    return {step: f"refused, {source.suspect[step]}; {all_the_same}" for step in todo if step in source.suspect}


def _can_go_on_without(refused: dict[int, str], work: Work) -> None:
    """Raises SihError when the audit leaves nothing to answer from."""
    steps, suspect = work.steps, work.source.suspect
    if len(refused) == len(steps) and not any(work.cells(score).steps() for score in work.scores):
        raise SihError(
            f"the audit convicts every chosen step: {', '.join(f'{s}: {suspect[s]}' for s in steps[:3])}"
            f"{' ...' if len(steps) > 3 else ''}. See python -m sih.audit; "
            "to measure them anyway: checkpoints.allow_suspect=true"
        )
