"""Measure every chosen checkpoint, then answer, draw and publish. `python -m sih.sweep`."""

from sih.command import command
from sih.config import Config


def run(config: Config) -> int:
    """Sweep; 0 when every chosen step has a result, 1 when some failed. On SLURM: 0 when the jobs are submitted."""
    from sih.running.launch import sweep  # imported late, so that --help and a mistyped option answer at once

    return sweep(config)


main = command(run)

if __name__ == "__main__":
    main()
