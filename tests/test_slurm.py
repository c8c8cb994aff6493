"""Sweeps on a real one-node SLURM, and everything that ends a task early."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LONG, SMALL, STEPS, composed, generated_texts, result_tables, run_at
from slurm_cluster import Cluster, missing

from sih import sweep
from sih.config import folder_of
from sih.results.claims import Claims
from sih.results.run import Run

pytestmark = pytest.mark.slurm
# A checkpoint takes a quarter of a minute; `seconds` changes no result.
LONGER = ["+scores.slow._target_=slow_score.Slow", "+scores.slow.seconds=12"]
AT_ONCE = [LONGER[0], "+scores.slow.seconds=0"]
# A node without enforcement of memory or devices: tasks ask for nothing but one of its processors.
OPTIONS = ["launcher=slurm", "launcher.partition=main", "launcher.gpus=0", "launcher.cpus=1", "launcher.chunk=2",
           "launcher.stale_after=20"]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if missing():
        pytest.fail(f"not installed: {', '.join(missing())}; on Debian: apt-get install slurm-wlm munge", pytrace=False)
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


class Sweep:
    """One output folder; `submit` sweeps into it on the cluster, as a user would."""

    def __init__(self, cluster: Cluster, folder: Path, cache: Path, *more: str) -> None:
        self.cluster, self.cache = cluster, cache
        self.options = [*SMALL, f"output={folder / 'runs'}", *more]
        self.config = composed(*self.options)

    @property
    def root(self) -> Path:
        return folder_of(self.config)

    @property
    def run(self) -> Run:
        return run_at(self.config)

    def done(self) -> list[int]:
        """Steps with a result of every score."""
        return [step for step in STEPS if all(step in cells.steps() for cells in self.run.scores.values())]

    def history(self) -> list[Path]:
        """Manifests of cells that were measured again."""
        return list(self.root.glob("*/*/history/*"))

    def command(self, name: str, *more: str) -> str:
        flags = [o for o in more if o.startswith("-")]  # Hydra wants them first
        line = [sys.executable, "-m", f"sih.{name}", *flags, *(o for o in more if o not in flags)]
        mine = {"SIH_CACHE": str(self.cache), "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(line, env=self.cluster.environment | mine, capture_output=True, text=True)
        assert done.returncode == 0 or (name == "status" and done.returncode == 1), done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def sweep(self, *more: str) -> str:
        return self.command("sweep", *self.options, *OPTIONS, *more)

    def status(self) -> str:
        return self.command("status", f"run={self.root}")

    def submit(self, *more: str) -> dict:
        assert f"python -m sih.status run={self.root}" in self.sweep(*more)
        records = (self.root / "slurm").glob("*.json")
        return json.loads(max(records, key=lambda f: int(f.stem)).read_text())

    def until(self, met, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, (self.cluster.queue(), self.logs())
            time.sleep(0.1)

    def running(self) -> dict[int, dict]:
        """A claim of each step of which one is there."""
        found = {}
        for file in (self.root / ".claims").glob("step*.json"):
            with contextlib.suppress(FileNotFoundError):  # given back meanwhile
                found[int(file.stem.split(".")[0].removeprefix("step"))] = json.loads(file.read_text())
        return found

    def logs(self) -> str:
        return "\n".join(f.read_text() for f in (self.root / "slurm").rglob("*.out"))

    def tables(self) -> dict[str, bytes]:
        return result_tables(self.run)


@pytest.fixture
def sweep_of(cluster, tmp_path, small_cache, monkeypatch):
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    return lambda *more: Sweep(cluster, tmp_path, small_cache, *more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_cache):
    """`undisturbed(*more)`: result tables of the same sweep in one process."""
    kept: dict[tuple[str, ...], dict[str, bytes]] = {}

    def tables(*more: str) -> dict[str, bytes]:
        if more not in kept:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SIH_CACHE", str(small_cache))
                alone = Sweep(None, tmp_path_factory.mktemp("alone"), small_cache, *more)  # type: ignore[arg-type]
                sweep.run(alone.config)
                kept[more] = alone.tables()
        return kept[more]

    return tables


def test_an_array_gives_the_same_bytes_as_one_process(sweep_of, undisturbed, cluster):
    """Each task with one of the node's two GPUs."""
    job = sweep_of()
    jobs = job.submit("launcher.gpus=1", "launcher.setup=['echo devices:$CUDA_VISIBLE_DEVICES:']")
    assert jobs["chunks"] == [[0, 1], [2, 4], [8]]
    assert {jobs["finish"], *(f"{jobs['array']}_{n}" for n in range(3))} == cluster.queue().keys()
    assert f"job {jobs['finish']}: PENDING" in job.status()
    cluster.until_empty()
    assert job.tables() == undisturbed()
    assert not job.history()
    given = re.findall("devices:(.*):", job.logs())
    assert len(given) == 4
    assert set(given) == {"0", "1", ""}  # nothing for the job that concludes
    said = job.status()
    assert "done       5" in said
    assert "missing    0" in said


@pytest.mark.slow
def test_a_dry_run_submits_nothing(sweep_of, cluster):
    job = sweep_of()
    said = " ".join(job.sweep("launcher.dry_run=true", "launcher.memory=4GB").split())
    assert "task 2: steps 8" in said
    assert "slurm_mem: 4GB" in said
    assert "Nothing submitted" in said
    assert not cluster.queue()
    assert not job.root.exists()


def disturbed(job: Sweep, undisturbed, cluster, long: list[str] = LONG) -> None:
    """After what happened, everything else is there; the same command again completes it, with the same tables."""
    cluster.until_empty()
    assert job.tables().keys() <= undisturbed(*long).keys()
    if job.done() != STEPS:
        job.submit()
        cluster.until_empty()
    assert job.tables() == undisturbed(*long)
    assert not job.history()  # nothing was measured twice
    assert not Claims(job.root, 20).living()


def measuring(job: Sweep, n: int = 1) -> dict[int, dict]:
    job.until(lambda: len(job.running()) >= n)
    return job.running()


@pytest.mark.slow
def test_kill_9(sweep_of, undisturbed, cluster):
    job = sweep_of(*LONG)
    job.submit()
    victim = measuring(job)
    step, claim = next(iter(victim.items()))
    os.kill(claim["process"], signal.SIGKILL)
    cluster.until_empty()
    done = set(job.done())
    (chunk,) = [c for c in ([0, 1], [2, 4], [8]) if step in c]
    assert step not in done
    assert done >= set(STEPS) - set(chunk)  # the other tasks went on
    assert f"without a result: steps {', '.join(str(s) for s in STEPS if s not in done)}" in job.logs()
    disturbed(job, undisturbed, cluster)


@pytest.mark.slow
def test_scancel_of_a_task(sweep_of, undisturbed, cluster):
    job = sweep_of(*LONG)
    jobs = job.submit()
    measuring(job)
    job.until(lambda: {0, 1} & job.running().keys())
    cluster.run("scancel", f"{jobs['array']}_0")
    cluster.until_empty()
    assert "CANCELLED" in job.logs()
    assert set(job.done()) >= {2, 4, 8}
    disturbed(job, undisturbed, cluster)


@pytest.mark.slow
def test_requeue(sweep_of, undisturbed, cluster):
    job = sweep_of(*LONG)
    jobs = job.submit()
    job.until(lambda: {0, 1} & job.running().keys())
    assert cluster.run("scontrol", "requeue", f"{jobs['array']}_0").returncode == 0
    cluster.until_empty()
    assert "DUE TO JOB REQUEUE" in job.logs()
    assert job.done() == STEPS  # by itself
    disturbed(job, undisturbed, cluster)


@pytest.mark.slow
def test_the_node_goes_down(sweep_of, undisturbed, cluster):
    job = sweep_of(*LONG)
    job.submit()
    measuring(job)
    cluster.node_down()
    cluster.until_empty()
    assert "DUE TO NODE FAILURE" in job.logs()
    assert job.done() == STEPS  # by itself
    disturbed(job, undisturbed, cluster)


@pytest.mark.slow
def test_preemption(sweep_of, undisturbed, cluster):
    job = sweep_of(*LONG)
    job.submit()
    measuring(job)
    sent = cluster.run(
        "sbatch", "--partition=urgent", f"--cpus-per-task={cluster.cpus}", "--output=/dev/null", "--wrap=sleep 3"
    )
    assert sent.returncode == 0, sent.stderr
    cluster.until_empty()
    assert "DUE TO PREEMPTION" in job.logs()
    assert job.done() == STEPS  # by itself
    disturbed(job, undisturbed, cluster)


@pytest.mark.slow
def test_time_limit(sweep_of, undisturbed, cluster):
    """One task with everything, which begins late in its two minutes, is told before they are over.

    SLURM looks every half minute, so it is told after 60 to 90 seconds.
    """
    job = sweep_of(*LONGER)
    jobs = job.submit(
        "launcher.chunk=5", "launcher.minutes=2", "launcher.signal_seconds=30", "launcher.setup=['sleep 30']"
    )
    cluster.until_empty(480)
    assert f"Requeued job {jobs['array']} (" in job.logs()
    assert job.done() == STEPS  # by itself
    disturbed(job, undisturbed, cluster, AT_ONCE)


def only_the_first(line: str) -> str:
    """A setup line of the first task alone."""
    return f"""launcher.setup=['[ "$SLURM_ARRAY_TASK_ID" != 0 ] || {line}']"""


LOST = "without a result: steps 0, 1; the same command measures them"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "says", "concludes"),
    [
        # A measurement does not fit into 1.5 GB of addresses; sometimes the process lives to say so.
        (
            "ulimit -v 1500000",
            "(?i)memory",
            "without a result: steps (0, )?1; the same|step 1 failed: .*(out of memory|can't start new thread)",
        ),
        # The tables are larger than that, the jobs' own files are not.
        ("ulimit -f 8", "cannot be written: .*File too large", LOST),
        ("export SLURM_RESTART_COUNT=none", "ValueError", LOST),
    ],
    ids=["out of memory", "disk full", "exception"],
)
def test_a_task_that_fails_ends_alone(sweep_of, undisturbed, cluster, line, says, concludes):
    job = sweep_of(*LONG)
    job.submit(only_the_first(line))
    cluster.until_empty()
    assert job.done() == [2, 4, 8]
    assert re.search(says, job.logs())
    assert re.search(concludes, job.logs())
    disturbed(job, undisturbed, cluster)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of four megabytes, and a function that gives it more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk of its own takes root: {mounted.stderr.strip()}")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=400m", folder], check=True)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_the_shared_disk_full_for_everybody(small_disk, undisturbed, cluster, small_cache, monkeypatch):
    """While tasks measure, and not even their logs fit any more; with more room the same command completes it."""
    folder, more_room = small_disk
    monkeypatch.setenv("SIH_CACHE", str(small_cache))
    job = Sweep(cluster, folder, small_cache, *LONG)
    job.submit()
    measuring(job)
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    cluster.until_empty()
    assert len(job.done()) < len(STEPS)
    filler.unlink()
    more_room()
    disturbed(job, undisturbed, cluster)


@pytest.mark.slow
def test_a_broken_checkpoint_fails_alone(sweep_of, undisturbed, cluster, tmp_path, small_cache):
    series = tmp_path / "series"
    (source,) = [p for p in (small_cache / "tiny").iterdir() if (p / "step8").is_dir()]
    for step in STEPS:
        (series / f"step{step}").mkdir(parents=True)
        for file in (source / f"step{step}").iterdir():
            (series / f"step{step}" / file.name).write_bytes(file.read_bytes())
    if (source / "tokenizer.json").exists():
        (series / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    weights = series / "step2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    job = sweep_of()
    job.options = [*generated_texts(tmp_path), "model=local", f"model.path={series}", "device=cpu"]
    job.config = composed(*job.options)
    job.submit()
    cluster.until_empty()
    assert job.done() == [0, 1, 4, 8]
    failed = job.run.failed()[2]
    assert failed.keys() == job.run.scores.keys()
    assert all("weights cannot be read" in reason for reason in failed.values())
    assert "step 2 failed" in job.logs()
    assert "failed     1  2" in job.status()


@pytest.mark.slow
def test_two_sweeps_of_one_model_at_once(sweep_of, undisturbed, cluster):
    job = sweep_of(*LONGER)
    job.submit()
    job.submit("launcher.chunk=3")
    assert len([j for j in cluster.queue() if "_" in j]) == 3 + 2  # tasks of both arrays
    disturbed(job, undisturbed, cluster, AT_ONCE)


@pytest.mark.slow
def test_several_seeds_in_one_command(sweep_of, undisturbed, cluster):
    job = sweep_of()
    said = job.sweep("-m", "model.seed=range(0,2)")
    arrays = re.findall("Submitted: array ([0-9]+), then job ([0-9]+)", said)
    assert len(arrays) == 2
    cluster.until_empty()
    assert job.tables() == undisturbed()
    job.config.model.seed = 1
    assert job.done() == STEPS
    assert "emergence.json" in job.tables()
    assert job.tables() != undisturbed()


def test_without_slurm_one_error(small_cache, tmp_path):
    environment = os.environ | {"PATH": str(Path(sys.executable).parent), "SIH_CACHE": str(small_cache)}
    line = [sys.executable, "-m", "sih.sweep", *SMALL, f"output={tmp_path}", *OPTIONS]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no sbatch on this machine" in done.stderr
