"""A one-node SLURM of this machine, from Debian's packages, without systemd or cgroups."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
_SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=_SBIN)]


class Cluster:
    """Starts on entering and stops on leaving; `environment` is what SLURM's commands need to reach it.

    Two partitions of the same node: `main`, and `urgent`, whose jobs preempt main's by requeueing them.
    """

    def __init__(self, folder: Path, cpus: int = 4) -> None:
        self.folder, self.cpus = folder, cpus
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _SBIN}
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(self._configuration())
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/tty0\nName=gpu File=/dev/tty1\n")
        self._start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.sock",
                    f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                    f"--seed-file={self.folder}/munge.seed")  # fmt: skip
        self._until(lambda: (self.folder / "munge.sock").exists())
        self._start("slurmctld", "-D", "-i")
        self._start("slurmd", "-D", "-N", self._host)
        self._until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T").stdout)
        return self

    def __exit__(self, *_) -> None:
        self.run("scancel", f"--user={getpass.getuser()}")
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True)

    def node_down(self) -> None:
        """Take the node out of service until its daemon next reports (ReturnToService=2): its jobs are lost."""
        done = self.run("scontrol", "update", f"nodename={self._host}", "state=down", "reason=test")
        assert done.returncode == 0, done.stderr

    def queue(self) -> dict[str, str]:
        """State of every job that is in the queue, by id."""
        found = self.run("squeue", "--noheader", "--array", "--format=%i %T")
        assert found.returncode == 0, found.stderr
        return dict(line.split() for line in found.stdout.splitlines())

    def until_empty(self, seconds: float = 240) -> None:
        self._until(lambda: not self.queue(), seconds)

    _host = socket.gethostname().split(".")[0]

    def _start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "w") as out:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=out, stderr=out))

    def _until(self, met, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, {f.name: f.read_text()[-600:] for f in self.folder.glob("*.out")}
            time.sleep(0.1)

    def _configuration(self) -> str:
        ports = [_free_port() for _ in range(2)]
        folder, user = self.folder, getpass.getuser()
        return f"""
ClusterName=one
SlurmctldHost={self._host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
SchedulerParameters=sched_interval=1,requeue_delay=1
KillWait=2
MinJobAge=300
NodeName={self._host} NodeAddr=127.0.0.1 CPUs={self.cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
