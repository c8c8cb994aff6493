"""What SLURM's queue knows of a sweep."""

import json
import shutil
import subprocess
from typing import Any

from sih.errors import SihError
from sih.results.run import Run


def submitted(run: Run) -> list[dict[str, Any]]:
    """The record of every array of this sweep, the earliest first: jobs, since, chunks of steps."""
    records = [json.loads(file.read_text()) for file in (run.root / "slurm").glob("[0-9]*.json")]
    return sorted(records, key=lambda record: record["since"])


def queued(run: Run) -> dict[str, str]:
    """The state of each of the sweep's jobs that the queue still knows, by id; empty without a queue.

    Raises:
        SihError: the queue does not answer.
    """
    records = submitted(run)
    if not records or not shutil.which("squeue"):
        return {}
    ours = {job for record in records for job in (record["array"], record["finish"])}
    command = ["squeue", "--noheader", "--array", "--format=%i %T"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        said = (found.stderr.strip() or f"squeue ended with exit code {found.returncode}").splitlines()[-1]
        raise SihError(f"the queue does not answer: {said}")
    states = dict(line.split() for line in found.stdout.splitlines())
    return {job: state for job, state in states.items() if job.split("_")[0] in ours}
