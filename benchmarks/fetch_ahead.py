"""Does measuring ever wait for fetching? Whole sweeps over a loopback Hub of limited bandwidth.

    python benchmarks/fetch_ahead.py [--checkpoints 24] [--ratios 0.5 1 2]

First, a sweep of the checkpoints as local folders shows how long measuring takes: everything that `python -m sih.sweep`
does, on texts of the generated language. The bandwidth is then set so that fetching takes half as long, as long, and
twice as long, and the same sweep is made from the Hub, fetching one ahead and none.

Prints wall time over the larger of all fetching (every checkpoint fetched, none measured) and all measuring (the local
sweep), then what an audit of 154 revisions costs. Nothing can run during the first fetch, nor during preparing and
answering when fetching is the longer part, so the ratio has a floor of about 1 + 1/checkpoints.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import composed, generated_texts, random_module, write_checkpoint
from hub_server import Hub

from sih import sweep
from sih.checkpoints import Checkpoint
from sih.checkpoints.files import Sha256
from sih.checkpoints.hub import HubModel
from sih.checkpoints.naming import OWN
from sih.checkpoints.revisions import HubSeries
from sih.checkpoints.schedule import PYTHIA_STEPS
from sih.checkpoints.training import tokenizer_of_corpus
from sih.config import CheckpointsConfig

NAME = "me/model"
SERIES = HubSeries((NAME,), OWN, "last")
SHAPE = {"layers": 4, "heads": 4, "width": 256}
OPTIONS = CheckpointsConfig(disk_budget="10GB", ahead=1, attempts=3, first_wait=0.1, allow_suspect=False)


def _serve(folders: dict[str, Path], bandwidth: float, address, done) -> None:
    with Hub({NAME: folders}, bandwidth=bandwidth) as hub:
        address.put(hub.url)
        done.wait()


@contextlib.contextmanager
def served(folders: dict[str, Path], bandwidth: float) -> Iterator[str]:
    """The address of a Hub in its own process, so that serving takes only a core away from measuring."""
    context = multiprocessing.get_context("spawn")
    address, done = context.Queue(), context.Event()
    process = context.Process(target=_serve, args=(folders, bandwidth, address, done))
    process.start()
    try:
        yield address.get()
    finally:
        done.set()
        process.join()


def swept(*options: str) -> float:
    """Seconds of one whole sweep."""
    config = composed(*options)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = sweep.run(config)
    assert code == 0
    return time.perf_counter() - started


def swept_from_hub(url: str, ahead: int, *options: str) -> float:
    constants.ENDPOINT = url  # what HF_ENDPOINT sets, once, at import
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SIH_CACHE"] = cache
        return swept("model=pythia-14m", f"model.repo={NAME}", "model.document_start='<end>'",
                     f"checkpoints.ahead={ahead}", *options, f"output={cache}/runs")  # fmt: skip


def fetched(url: str) -> float:
    """Seconds to fetch every checkpoint and do nothing with it, including the client's overhead."""
    with tempfile.TemporaryDirectory() as cache:
        model = HubModel(SERIES, Path(cache), OPTIONS, Sha256(), endpoint=url)
        started = time.perf_counter()
        for _, checkpoint in model.stream(model.steps, lambda *_: None):
            assert isinstance(checkpoint, Checkpoint), checkpoint
        return time.perf_counter() - started


def audited(folder: Path) -> None:
    folders = {f"step{s}": folder for s in PYTHIA_STEPS} | {"main": folder}
    with tempfile.TemporaryDirectory() as cache, Hub({NAME: folders}) as hub:
        hub.merged = {"main": f"step{PYTHIA_STEPS[-1]}"}
        for what in ("first audit", "again"):
            before, started = len(hub.requests), time.perf_counter()
            HubModel(SERIES, Path(cache), OPTIONS, Sha256(), endpoint=hub.url)
            print(f"{what} of 154 revisions: {len(hub.requests) - before} requests, "
                  f"{time.perf_counter() - started:.2f} s on the loopback")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=24)
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="of fetching over measuring")
    parser.add_argument("--sequences", type=int, default=96, help="of repeated tokens: how long measuring takes")
    args = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)  # the other core serves and fetches
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        tokenizer = tokenizer_of_corpus()
        steps = PYTHIA_STEPS[: args.checkpoints + 1]
        folders = {
            f"step{s}": write_checkpoint(
                scratch / "series" / f"step{s}",
                random_module(512, s, SHAPE["layers"], SHAPE["heads"], SHAPE["width"], 512), tokenizer,
            )
            for s in steps if s != 1
        }  # fmt: skip
        folders["main"] = folders[f"step{steps[-1]}"]
        size = sum(f.stat().st_size for f in folders["step0"].iterdir())
        options = [*(f"model.{name}={value}" for name, value in SHAPE.items()), *generated_texts(scratch),
                   f"scores.induction.sequences={args.sequences}", "batch_tokens=4096", "steps=all"]  # fmt: skip
        local = ["model=local", f"model.path={scratch / 'series'}", *options, f"output={scratch / 'local'}"]
        swept(*local, "steps=[0]", "seed=1")  # the first sweep of a process is slower
        measuring = (swept(*local) + swept(*local, "force=true")) / 2
        count = len(folders) - 1
        print(f"{count} checkpoints of {size / 1e6:.0f} MB; the sweep of local folders takes {measuring:.1f} s")
        print(f"{'fetch/measure':>14} {'ahead':>6} {'fetch s':>8} {'measure s':>10} {'wall s':>7} {'wall/max':>9}")
        for ratio in args.ratios:
            with served(folders, count * size / (measuring * ratio)) as url:
                fetching = fetched(url)
                for ahead in (1, 0):
                    wall = swept_from_hub(url, ahead, *options)
                    print(f"{ratio:14.1f} {ahead:6d} {fetching:8.1f} {measuring:10.1f} {wall:7.1f} "
                          f"{wall / max(fetching, measuring):9.2f}", flush=True)  # fmt: skip
        audited(folders["step0"])


if __name__ == "__main__":
    main()
