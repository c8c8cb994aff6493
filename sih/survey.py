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
