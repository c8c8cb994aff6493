"""How far a run is, from its folder and the queue: `python -m sih.status model=...`; without a model, all runs."""

import sys

from rich.console import Console

from sih.command import command
from sih.config import Config


def run(config: Config) -> int:
    """Print done, running, failed and missing steps, and the queue's jobs; 0 when all are done, else 1.

    With force, only what was measured since the newest array was submitted counts as done.
    """
    from sih.running.progress import show

    return show(config, Console())


_command = command(run, ("run", "name", "output", "model", "scores", "steps", "force", "launcher"))


def main() -> None:
    """Show one run; without run=, name= or model=, list all runs."""
    words = sys.argv[1:]
    if not any(word.startswith(("run=", "name=", "model", "-")) for word in words):
        from sih.running.progress import list_runs

        raise SystemExit(list_runs(words, Console()))
    _command()


if __name__ == "__main__":
    main()
