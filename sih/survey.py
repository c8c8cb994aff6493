"""What a sweep has before it: the chosen steps, what is measured already, and what the audit refuses."""

from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console

from sih.bars import bar_of
from sih.checkpoints import Sha256, Source
from sih.checkpoints.schedule import choose, in_ranges
from sih.checkpoints.sources import open_source
from sih.config import Config, model_name
from sih.errors import SihError
from sih.results import Results, locate
from sih.store import Store, folder_name


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
    kept = done & set(source.steps) - set(todo)
    for step in [] if part else sorted(kept):  # the answer reads all of the store
        _still_the_same(results.store, source, step)
        if not config.checkpoints.allow_suspect:
            _not_convicted_since(results.store, source, step)
    console.print(
        f"[bold]{model_name(config.model)}[/bold]: {len(steps)} checkpoints, step {steps[0]} to {steps[-1]}: "
        f"{len(steps) - len(todo)} kept, {len(todo)} to measure"
    )
    refused = {} if config.checkpoints.allow_suspect else _refused(source, todo)
    if refused and not part:
        _can_go_on_without(refused, source, results.store, steps)
    for step, reason in refused.items():
        results.store.write_failure(step, reason)
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


def _not_convicted_since(store: Store, source: Source, step: int) -> None:
    """Raises SihError when the audit convicts a step that was measured before it did."""
    if step in source.suspect and store.manifest(step).get("suspect") is None:
        raise SihError(
            f"step {step} in {store.root} was measured before the audit convicted it ({source.suspect[step]}): "
            f"delete {store.root / folder_name(step)}, or keep it with checkpoints.allow_suspect=true"
        )


def _refused(source: Source, todo: list[int]) -> dict[int, str]:
    """Of `todo` the steps that the audit convicts, with what is said of them."""
    all_the_same = "to measure it all the same: checkpoints.allow_suspect=true"
    return {step: f"refused, {source.suspect[step]}; {all_the_same}" for step in todo if step in source.suspect}


def _can_go_on_without(refused: dict[int, str], source: Source, store: Store, steps: list[int]) -> None:
    """Raises SihError when the audit convicts all there is to answer from."""
    if len(refused) == len(steps) and not store.steps():
        raise SihError(
            f"the audit convicts every chosen step: {', '.join(f'{s}: {source.suspect[s]}' for s in steps[:3])}"
            f"{' ...' if len(steps) > 3 else ''}. See python -m sih.audit; "
            "to measure them all the same: checkpoints.allow_suspect=true"
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
