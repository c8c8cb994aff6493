"""A sweep as one SLURM job array through submitit, and a job behind it that concludes."""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from rich.console import Console
from sih.jobs.tasks import Chunk, Finish

from sih.checkpoints.schedule import in_ranges
from sih.conclude import conclude
from sih.config import Config, LauncherConfig, model_name
from sih.errors import SihError
from sih.loop import Work
from sih.store import Store

_RECORD = "slurm/jobs.json"


def check(launcher: LauncherConfig) -> None:
    """Raises SihError where there is no SLURM to submit to."""
    if not launcher.dry_run and not shutil.which("sbatch"):
        raise SihError(
            "launcher=slurm: no sbatch on this machine; run it where jobs are submitted, or with launcher=local"
        )


def submit(work: Work, console: Console) -> int:
    """Submit an array over `work.todo`, one task for each contiguous chunk, and the job that follows it. 0."""
    launcher, store = work.config.launcher, work.results.store
    if not work.todo:
        console.print("Every chosen checkpoint is measured.")
        conclude(work.config, store, console)
        return 0
    config = _absolute(work.config)
    size = launcher.chunk or math.ceil(len(work.todo) / launcher.parallel)
    chunks = [work.todo[i : i + size] for i in range(0, len(work.todo), size)]
    console.print(f"{len(chunks)} tasks of up to {size} checkpoints, {launcher.parallel} at a time:")
    for n, chunk in enumerate(chunks):
        console.print(f"  task {n}: steps {in_ranges(chunk, work.source.steps)}", highlight=False)
    if launcher.dry_run:
        for name, value in _options(launcher, f"sih-{model_name(config.model)}").items():
            console.print(f"  {name}: {value}", highlight=False)
        console.print("then one job, after any end of the array: relate, draw, report and publish. Nothing submitted.")
        return 0
    try:
        array, finish = _submitted(config, chunks, work.steps, store)
    except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
        raise SihError(f"SLURM refused the jobs: {str(error).strip().splitlines()[-1]}") from None
    store.write_text(_RECORD, json.dumps({"array": array, "finish": finish, "chunks": chunks}) + "\n")
    console.print(f"Submitted: array {array}, then {finish}. Logs: {store.root}/slurm/", soft_wrap=True)
    console.print("How far it is: python -m sih.status with the same options")
    return 0


def _submitted(config: Config, chunks: list[list[int]], steps: list[int], store: Store) -> tuple[str, str]:
    """Ids of the array and of the job behind it."""
    launcher, name = config.launcher, f"sih-{model_name(config.model)}"
    executor = submitit.AutoExecutor(folder=store.root / "slurm" / "%A", cluster="slurm")
    executor.update_parameters(**_options(launcher, name), slurm_array_parallelism=launcher.parallel)
    with executor.batch():
        jobs = [executor.submit(Chunk(config, chunk)) for chunk in chunks]
    array = jobs[0].job_id.split("_")[0]
    last = submitit.AutoExecutor(folder=store.root / "slurm" / "%j", cluster="slurm")
    last.update_parameters(
        **_options(replace(launcher, gpus=0), f"{name}-finish"), slurm_dependency=f"afterany:{array}"
    )
    return array, last.submit(Finish(config, steps)).job_id


def _options(launcher: LauncherConfig, name: str) -> dict[str, Any]:
    """In submitit's words; what is null is left to the cluster."""
    wanted = {
        "name": name,
        "timeout_min": launcher.minutes,
        "cpus_per_task": launcher.cpus,
        "slurm_partition": launcher.partition,
        "slurm_account": launcher.account,
        "slurm_constraint": launcher.constraint,
        "slurm_gpus_per_node": launcher.gpus or None,
        "slurm_mem": launcher.memory,
        "slurm_setup": list(launcher.setup) or None,
        "slurm_signal_delay_s": launcher.signal_seconds,
        "stderr_to_stdout": True,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _absolute(config: Config) -> Config:
    """Jobs start elsewhere when a cluster wants them to."""
    model = config.model
    if model.path:
        model = replace(model, path=str(Path(model.path).resolve()))
    return replace(config, output=str(Path(config.output).resolve()), model=model)


def queued(store: Store) -> dict[str, str]:
    """State of each job of the last submission that the queue still knows, by id; empty without a queue."""
    file = store.root / _RECORD
    if not file.exists() or not shutil.which("squeue"):
        return {}
    jobs = json.loads(file.read_text())
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={jobs['array']},{jobs['finish']}"]
    found = subprocess.run(command, capture_output=True, text=True)
    return dict(line.split() for line in found.stdout.splitlines()) if found.returncode == 0 else {}
