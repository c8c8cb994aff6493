"""Estimated cost of a sweep: device-hours, bytes and wall time of every Pythia size, for 1, 8 and 64 tasks at a time.

    python benchmarks/scale.py [--flops 10e12] [--bandwidth 125e6] [--over 1.3] [--checkpoints 154]

Prints the budget of a checkpoint, and the table of jobs/README.md, which has the formula.
Needs the real data, which `make data` fetches.
"""

import argparse
import math
import sys
from pathlib import Path

from drawn import CONTEXT, VOCABULARY, drawn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import composed

SIZES = ["14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]
# The suite's files are in half precision, and the older ones contain each layer's causal mask, counted here as one byte
# for every pair of positions.
BYTES_PER_PARAMETER = 2


def parameters(layers: int, width: int) -> tuple[int, int]:
    """All parameters of a GPT-NeoX, and those that every token passes: the blocks, without both embeddings."""
    blocks = layers * (12 * width**2 + 13 * width) + 2 * width
    return blocks + 2 * VOCABULARY * width, blocks


def budget() -> tuple[int, int]:
    """Print tokens through the blocks and positions through the unembedding by score; returns how many of each."""
    inputs = drawn(composed("model=pythia-70m"))
    tokens, positions = inputs.tokens(), inputs.positions()
    print("| score | tokens through the blocks | positions through the unembedding |\n|---|---|---|")
    for name, count in tokens.items():
        print(f"| {name} | {count:,} | {positions[name]:,} |")
    together = sum(tokens.values()), sum(positions.values())
    print(f"| together | {together[0]:,} | {together[1]:,} |\n")
    return together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flops", type=float, default=10e12, help="FLOP/s that a device reaches")
    parser.add_argument("--bandwidth", type=float, default=125e6, help="bytes per second from the Hub to all tasks")
    parser.add_argument("--over", type=float, default=1.3, help="time over that of bare passes; cost.py measures it")
    parser.add_argument("--checkpoints", type=int, default=154)
    args = parser.parse_args()
    passed, unembedded = budget()
    print("| model | bytes, all | seconds per checkpoint | device-hours | wall, 1 task | 8 tasks | 64 tasks |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        model = composed(f"model=pythia-{size}").model
        everything, blocks = parameters(model.layers, model.width)
        operations = 2 * (passed * blocks + unembedded * VOCABULARY * model.width)
        seconds = args.over * operations / args.flops
        size_bytes = BYTES_PER_PARAMETER * everything + model.layers * CONTEXT**2
        fetch = size_bytes / args.bandwidth
        walls = [fetch + max(args.checkpoints * fetch, math.ceil(args.checkpoints / n) * seconds) for n in (1, 8, 64)]
        print(
            f"| {size} | {args.checkpoints * size_bytes / 1e9:,.0f} GB | {seconds:,.1f} "
            f"| {args.checkpoints * seconds / 3600:.1f} | {' | '.join(map(readable, walls))} |"
        )


def readable(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
