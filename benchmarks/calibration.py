"""Do the emergence statistics keep their promises? A test on simulated trajectories with known onsets.

    python benchmarks/calibration.py [--repeats 10] [--bootstrap 100] [--seed 0] [--only onsets lags flat ...]

Prints one table: every figure, its target, and what was reached. Every setting has its own seed, so that a part can be
repeated alone. With few repeats the worst of many settings is mostly luck. README.md says which repeats gave its
rows; 400 with --bootstrap 400 take a night.
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Sequence

from parts import CALIBRATED, LAGS, PAIRS, PARTS, RUNS, Work
from rich.console import Console
from rich.table import Table
from simulator import KINDS, SHAPES, Setting
from summary import summary


def works(repeats: int, bootstrap: int, seed: int, only: Sequence[str]) -> list[Work]:
    rising = [Setting(shape, grid, kind) for shape in SHAPES for grid in CALIBRATED for kind in KINDS]
    found = [Work("onsets", (s,), repeats, bootstrap, seed) for s in rising]
    for grid, (heads, icl), kinds, lag in itertools.product(CALIBRATED, PAIRS, [KINDS[2:0:-1], ("mean", "mean")], LAGS):
        two = Setting(heads, grid, kinds[0]), Setting(icl, grid, kinds[1])
        found.append(Work("lags", two, repeats, bootstrap, seed, lag))
    for grid, kind, phi, size in itertools.product(CALIBRATED, KINDS, (0.0, 0.5, 0.8, 0.9), (0.04, 0.1)):
        found.append(Work("flat", (Setting("flat", grid, kind, 0.3, size, phi),), 5 * repeats, 0, seed))
    for grid, kind in itertools.product(CALIBRATED, KINDS):
        found.append(Work("flat", (Setting("flat", grid, kind, 0.3, 0.1, 0.5, fall=4),), 5 * repeats, 0, seed))
    for prompts, phi in itertools.product((50, 150, 600), (0.5, 0.8)):
        found.append(Work("power", (Setting("step", 68, "binomial", documents=prompts, autocorrelation=phi),),
                          5 * repeats, 0, seed))  # fmt: skip
    for grid, shape in itertools.product((23, 38, 154), ("sigmoid", "gompertz")):
        found.append(Work("association", (Setting(shape, grid, "mean"),), 5 * repeats, 0, seed))
    for runs, sizes in ((4, 1), (6, 1), (9, 1), (4, 3), (9, 3)):
        found.append(Work("seeds", (Setting("flat", runs, "mean"),), 5 * repeats, 0, seed, sizes))
    for grid, true, phi in itertools.product((38, 154), (0, 1, 5, 20), (0.5, 0.8)):
        setting = Setting("sigmoid", grid, "ratio", 0.3, 0.04, phi)
        found.append(Work("discovery", (setting,), max(1, repeats // 2), 0, seed, true))
    for grid in (38, 154):
        hard = Setting("sigmoid", grid, "ratio", 0.3, 0.1, 0.8)
        found.append(Work("discovery", (hard,), max(1, repeats // 2), 0, seed, 0))
    for grid, most in ((38, len(RUNS)), (154, len(RUNS) - 1)):
        for kind, phi in itertools.product(range(most), (0.5, 0.8)):
            setting = Setting("sigmoid", grid, "ratio", 0.3, 0.04, phi)
            found.append(Work("runs", (setting,), max(1, repeats // (2 if grid == 38 else 5)), bootstrap, seed, kind))
    falling = Setting("sigmoid", 38, "ratio", 0.3, 0.08, 0.5, fall=4)
    found.append(Work("runs", (falling,), max(1, repeats // 2), bootstrap, seed, 0))
    for grid in (38, 154):
        found.append(Work("families", (Setting("sigmoid", grid, "mean"),), max(1, repeats // 2), bootstrap, seed))
    return [w for w in found if w.kind in only]


def done(work: Work) -> tuple[Work, dict[str, float]]:
    return work, PARTS[work.kind](work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="simulated runs in each setting")
    parser.add_argument("--bootstrap", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--settings", action="store_true", help="print every setting too")
    args = parser.parse_args()
    todo = works(args.repeats, args.bootstrap, args.seed, args.only)
    started = time.perf_counter()
    console = Console()
    with multiprocessing.get_context("spawn").Pool() as pool, console.status("simulating") as status:
        results = []
        for result in pool.imap_unordered(done, todo):
            results.append(result)
            status.update(f"simulating: {len(results)} of {len(todo)} settings")
    if args.settings:
        for work, found in sorted(results, key=lambda r: repr(r[0])):
            names = " ".join(f"{s.shape}/{s.kind}/{s.grid}/{s.autocorrelation}/{s.jitter}/{s.documents}/{s.fall}"
                             for s in work.settings)  # fmt: skip
            console.print(work.kind, work.lag, names, {k: round(v, 3) for k, v in found.items()}, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("figure", "target", "reached"):
        table.add_column(column)
    for row in summary(results):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"{len(todo)} settings, {args.repeats} repeats, B = {args.bootstrap}, seed {args.seed}: "
        f"{time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
