"""A sweep as one SLURM job array through submitit, and a job after it that concludes."""

import json
import math
import shutil
from dataclasses import replace
from typing import Any

import submitit
from rich.console import Console
from sih.jobs.tasks import Chunk, Finish
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sih.checkpoints.schedule import in_ranges
from sih.config import LauncherConfig
from sih.errors import SihError
from sih.running.conclude import conclude
from sih.running.survey import Work


def check(launcher: LauncherConfig) -> None:
    """Raises SihError when there is no SLURM to submit to."""
    for program in () if launcher.dry_run else ("sbatch", "srun"):
        if not shutil.which(program):
            raise SihError(
                f"launcher=slurm: no {program} on this machine; run where jobs are submitted, or use launcher=local"
            )


def submit(work: Work, console: Console) -> int:
    """Submit an array over `work.todo`, one task per contiguous chunk, and the job that follows it.

    Returns:
        0, or 1 when the audit refused some of the steps.
    """
    launcher, run = work.config.launcher, work.run
    if not work.todo:
        console.print("Nothing is left to measure.")
        if not launcher.dry_run:
            conclude(work.config, run, work.scores, console)
        return 1 if work.refused else 0
    size = launcher.chunk or math.ceil(len(work.todo) / launcher.parallel)
    chunks = [work.todo[i : i + size] for i in range(0, len(work.todo), size)]
    console.print(f"{len(chunks)} tasks of up to {size} checkpoints, {launcher.parallel} at a time:")
    for n, chunk in enumerate(chunks):
        console.print(f"  task {n}: steps {in_ranges(chunk, work.source.steps)}", highlight=False)
    if launcher.dry_run:
        for name, value in _options(launcher, f"sih-{run.name}").items():
            console.print(f"  {name}: {value}", highlight=False)
        console.print("then, however the array ends, one job: answer, draw, report and publish. Nothing submitted.")
        return 0
    run.write_record()
    work.forget_failures(work.todo)
    array = _submit_array(work, chunks)
    record = {"array": array, "finish": None, "since": work.since.isoformat(), "chunks": chunks}
    run.write_text(f"slurm/{array}.json", json.dumps(record) + "\n")
    record["finish"] = finish = _submit_finish(work, array)
    run.write_text(f"slurm/{array}.json", json.dumps(record) + "\n")
    console.print(f"Submitted: array {array}, then job {finish}. Logs: {run.root}/slurm/", soft_wrap=True)
    again = " force=true" if work.config.force else ""
    console.print(f"Progress: python -m sih.status run={run.root}{again}", soft_wrap=True, highlight=False)
    return 1 if work.refused else 0


def _submit_array(work: Work, chunks: list[list[int]]) -> str:
    config = work.config
    executor = submitit.AutoExecutor(
        folder=work.run.root / "slurm" / "%A",
        cluster="slurm",
        slurm_max_num_timeout=max(len(chunk) for chunk in chunks),  # one for each checkpoint, at worst
    )
    executor.update_parameters(
        **_options(config.launcher, f"sih-{work.run.name}"),
        slurm_array_parallelism=config.launcher.parallel,
    )
    try:
        with executor.batch():
            jobs = [executor.submit(Chunk(config, chunk, work.since)) for chunk in chunks]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise SihError(f"the array could not be submitted: {_last_line(error)}") from None
    return jobs[0].job_id.split("_")[0]


def _submit_finish(work: Work, array: str) -> str:
    config = work.config
    executor = submitit.AutoExecutor(folder=work.run.root / "slurm" / "%j", cluster="slurm")
    executor.update_parameters(
        **_options(replace(config.launcher, gpus=0), f"sih-{work.run.name}-finish"),
        slurm_dependency=f"afterany:{array}",
    )
    try:
        return executor.submit(Finish(config, work.steps, work.since, work.run.record)).job_id
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise SihError(
            f"SLURM took the array {array}, but the job after it could not be submitted: {_last_line(error)}. "
            "When the array has ended, the same command answers and publishes"
        ) from None


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _options(launcher: LauncherConfig, name: str) -> dict[str, Any]:
    """The options under submitit's names; what is null is left to the cluster."""
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
        "slurm_srun_args": [f"--cpus-per-task={launcher.cpus}"],  # since SLURM 22.05 srun does not ask sbatch
        "slurm_additional_parameters": {"requeue": True},  # whatever the cluster's default
        "stderr_to_stdout": True,
    }
    return {key: value for key, value in wanted.items() if value is not None}
