"""How far a sweep is, from the store and the queue: `python -m sih.status model=...`."""

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from sih.checkpoints import Sha256
from sih.checkpoints.local import LocalFolder
from sih.checkpoints.schedule import PYTHIA_STEPS, choose, in_ranges
from sih.claims import Claims
from sih.command import command
from sih.config import Config, model_name
from sih.errors import SihError
from sih.jobs.queue import queued, submitted
from sih.results import locate
from sih.survey import is_measured


def offered(config: Config) -> list[int]:
    """The model's steps, without asking the Hub or training anything."""
    if config.model.train is not None:
        return sorted(config.model.train.steps)
    if config.model.source == "local":
        return LocalFolder(Path(str(config.model.path)), Sha256()).steps
    return list(PYTHIA_STEPS)


def run(config: Config) -> int:
    """Print done, running, failed and missing steps, and the queue's jobs; 0 when all are done, else 1.

    With force, done is what was measured since the newest array was submitted.
    """
    console, store = Console(), locate(config).store
    steps = choose(config.steps, offered(config))
    arrays = submitted(store)
    since = datetime.fromisoformat(arrays[-1]["since"]) if arrays else datetime.min.replace(tzinfo=UTC)
    done = {step for step in steps if is_measured(store, step, config, since)}
    failed = {step: reason for step in steps if step not in done and (reason := store.failure(step))}
    running = Claims(store.root, config.launcher.stale_after).living()
    missing = [s for s in steps if s not in done and s not in running and s not in failed]
    console.print(f"[bold]{model_name(config.model)}[/bold], {store.root}", soft_wrap=True, highlight=False)
    for name, found in (
        ("done", sorted(done)),
        ("running", [s for s in steps if s in running]),
        ("failed", [s for s in steps if s in failed and s not in running]),
        ("missing", missing),
    ):
        console.print(f"  {name:<8}{len(found):>4}  {in_ranges(found, steps)}", highlight=False)
    for step, holder in running.items():
        console.print(f"  step {step}: {holder}", highlight=False)
    for step, reason in failed.items():
        console.print(f"  step {step} failed: {reason}", soft_wrap=True, highlight=False)
    try:
        for job, state in queued(store).items():
            console.print(f"  job {job}: {state}", highlight=False)
    except SihError as error:
        console.print(f"  {error}", soft_wrap=True, highlight=False)
    return 0 if done == set(steps) else 1


main = command(run)

if __name__ == "__main__":
    main()
