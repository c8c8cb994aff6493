"""What the Hub serves under each step's label, without downloading weights: `python -m sih.audit model=...`."""

from rich.console import Console

from sih.command import command
from sih.config import Config, bytes_of, check_sweep, folder_of
from sih.errors import SihError


def run(config: Config) -> int:
    """Audit a Hub model; 1 when a chosen step is suspect or could not be read."""
    check_sweep(config)
    if config.model.source != "hub":
        raise SihError("an audit reads a Hub repository's labels: choose one such as model=pythia-70m")
    from sih.checkpoints.files import Sha256  # these import the Hub's client, which takes a second
    from sih.checkpoints.schedule import choose
    from sih.checkpoints.sources import hub_model
    from sih.running.audited import HEADER, rows, show
    from sih.running.bars import bar_of
    from sih.texts.written import csv_text

    console = Console()
    with bar_of(console) as bar:
        task = bar.add_task("auditing the Hub's revisions", total=None)
        audit = hub_model(
            config.model,
            config.checkpoints,
            Sha256(),
            lambda done, total: bar.update(task, completed=done, total=total),
        ).audit
    chosen = choose(config.steps, audit.steps)
    show(audit, chosen, bytes_of(config.checkpoints.disk_budget), console, config.model.notes or [])
    file = folder_of(config) / "audit.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(csv_text(HEADER, rows(audit)), encoding="utf-8")
    console.print(f"Written: {file}", soft_wrap=True, highlight=False)
    return 1 if set(chosen) & {*audit.suspect, *audit.unread} else 0


main = command(run, ("model", "steps", "output", "name", "checkpoints"))

if __name__ == "__main__":
    main()
