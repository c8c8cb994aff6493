"""Does measuring ever wait for fetching? A sweep's checkpoints over a loopback Hub of limited bandwidth.

    python benchmarks/fetch_ahead.py [--checkpoints 24] [--compute 1.5] [--ratios 0.5 1 2]

Measuring is real forward passes repeated for `compute` seconds a checkpoint; fetching is throttled to take half as
long, as long, and twice as long. Prints total wall time over the larger of total fetching and total computing,
then what an audit of 154 revisions costs. Fetching ahead cannot hide the first fetch, which nothing runs beside,
so the ratio has a floor of 1 + 1/checkpoints where computing is the longer part.
"""

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from hub_server import Hub

from sih.checkpoints import Checkpoint, Sha256
from sih.checkpoints.hub import HubModel
from sih.checkpoints.schedule import PYTHIA_STEPS
from sih.checkpoints.tiny import tokenizer_of_corpus
from sih.config import CheckpointsConfig
from sih.model import load

OPTIONS = CheckpointsConfig(disk_budget="10GB", ahead=1, attempts=3, first_wait=0.1, allow_suspect=False)


def written(folder: Path, seed: int, width: int) -> Path:
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=1024, hidden_size=width, num_hidden_layers=4, num_attention_heads=4, intermediate_size=4 * width,
        max_position_embeddings=512,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer_of_corpus().save(str(folder / "tokenizer.json"))
    return folder


def compute(checkpoint: Checkpoint, seconds: float) -> float:
    """Load and forward passes until `seconds` are over; the time it really took."""
    started = time.perf_counter()
    model = load(checkpoint.folder, torch.device("cpu"))
    ids = torch.randint(1024, (8, 256))
    with torch.inference_mode():
        while time.perf_counter() - started < seconds:
            model.module(ids)
    return time.perf_counter() - started


def swept(folders: dict[str, Path], bandwidth: float, seconds: float, ahead: int) -> tuple[float, float]:
    """Wall time of the whole stream, and the part of it that was computing."""
    options = CheckpointsConfig(**{**vars(OPTIONS), "ahead": ahead})
    with tempfile.TemporaryDirectory() as cache, Hub({"me/model": folders}) as hub:
        model = HubModel("me/model", Path(cache), options, Sha256(), endpoint=hub.url)
        hub.bandwidth = bandwidth
        started, computing = time.perf_counter(), 0.0
        for _, checkpoint in model.stream(model.steps, lambda *_: None):
            assert isinstance(checkpoint, Checkpoint), checkpoint
            computing += compute(checkpoint, seconds)
        return time.perf_counter() - started, computing


def audited(folder: Path) -> None:
    folders = {f"step{s}": folder for s in PYTHIA_STEPS} | {"main": folder}
    with tempfile.TemporaryDirectory() as cache, Hub({"me/model": folders}) as hub:
        hub.merged = {"main": f"step{PYTHIA_STEPS[-1]}"}
        for what in ("first audit", "again"):
            before, started = len(hub.requests), time.perf_counter()
            HubModel("me/model", Path(cache), OPTIONS, Sha256(), endpoint=hub.url)
            print(f"{what} of 154 revisions: {len(hub.requests) - before} requests, "
                  f"{time.perf_counter() - started:.2f} s on the loopback")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=24)
    parser.add_argument("--compute", type=float, default=1.5, help="seconds of forward passes for each checkpoint")
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="of fetching over measuring")
    parser.add_argument("--width", type=int, default=256, help="d_model of the four-layer checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the other core serves
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            f"step{s}": written(Path(scratch) / f"step{s}", s, args.width) for s in PYTHIA_STEPS[: args.checkpoints]
        }
        size = sum(f.stat().st_size for f in (Path(scratch) / "step0").iterdir())
        print(f"{args.checkpoints} checkpoints of {size / 1e6:.0f} MB, {args.compute} s of computing each")
        print(f"{'fetch/compute':>14} {'ahead':>6} {'fetch s':>8} {'compute s':>10} {'wall s':>7} {'wall/max':>9}")
        for ratio in args.ratios:
            bandwidth = size / (args.compute * ratio)
            # What fetching takes by itself at this bandwidth, overheads of the client included.
            fetching, _ = swept(folders, bandwidth, 0.0, 0)
            for ahead in (1, 0):
                wall, computing = swept(folders, bandwidth, args.compute, ahead)
                print(f"{ratio:14.1f} {ahead:6d} {fetching:8.1f} {computing:10.1f} {wall:7.1f} "
                      f"{wall / max(fetching, computing):9.2f}", flush=True)  # fmt: skip
        audited(Path(scratch) / "step0")


if __name__ == "__main__":
    main()
