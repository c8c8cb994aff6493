"""What SLURM's queue knows of a sweep."""

import json
import shutil
import subprocess

from sih.store import Store


def queued(store: Store) -> dict[str, str]:
    """State of each of the sweep's jobs that the queue still knows, by id; empty without a queue."""
    records = [json.loads(file.read_text()) for file in (store.root / "slurm").glob("*.json")]
    if not records or not shutil.which("squeue"):
        return {}
    ours = {job for record in records for job in (record["array"], record["finish"])}
    command = ["squeue", "--noheader", "--array", "--format=%i %T"]
    found = subprocess.run(command, capture_output=True, text=True)
    states = dict(line.split() for line in found.stdout.splitlines())
    return {job: state for job, state in states.items() if job.split("_")[0] in ours}
