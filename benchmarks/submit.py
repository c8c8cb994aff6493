"""How long submitting takes: 154 tasks for each of ten models, to a one-node SLURM that runs none of them.

    python benchmarks/submit.py

Needs SLURM's daemons, as `make test-slurm` does.
"""

import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from sih.jobs import slurm

from sih.checkpoints.files import Sha256
from sih.checkpoints.schedule import PYTHIA_STEPS
from sih.config import Config, folder_of
from sih.results.cells import key_of
from sih.results.run import Record, Run
from sih.running.survey import Work
from sih.scores.making import made

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import composed
from slurm_cluster import Cluster


def _everything(config: Config, steps: list[int]) -> Work:
    """A sweep of these steps with nothing measured yet, without asking the Hub."""
    scores = made(config.scores)
    settings = {name: {"score": name} for name in scores}
    keys = {name: key_of(setting) for name, setting in settings.items()}
    record = Record({"name": config.model.name}, "hub", "", config.seed, config.dtype, steps, steps, keys, "")
    run, source = Run(folder_of(config), record), SimpleNamespace(steps=steps)
    files: dict[str, dict[str, Path]] = {name: {} for name in scores}
    return Work(config, run, scores, settings, files, source, Sha256(), steps, steps, {}, datetime.now(UTC))


def main() -> None:
    steps = list(PYTHIA_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
        with Cluster(Path(folder)) as cluster:
            cluster.run("scontrol", "update", "partition=main", "state=down")
            started = time.perf_counter()
            for seed in range(10):
                config = composed("model=pythia-70m", f"model.seed={seed}", "launcher=slurm", "launcher.chunk=1",
                                  "launcher.gpus=0", f"output={folder}/runs")  # fmt: skip
                slurm.submit(_everything(config, steps), Console(quiet=True))
            seconds = time.perf_counter() - started
            print(f"{len(cluster.queue())} jobs queued in {seconds:.1f} s, {seconds / 10:.1f} s per model")
            print(f"{sum(f.stat().st_size for f in Path(folder).rglob('*.pkl')) / 1e6:.1f} MB of pickled tasks")


if __name__ == "__main__":
    main()
