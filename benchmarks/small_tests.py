"""Error rates of two small decisions, on jitter that is a known AR(1) series.

    python benchmarks/small_tests.py [--repeats 600]

- p_residual <= .05 for two unrelated rises at steps 127 and 511, and, as power, where they share jitter (r = .8);
- "still rising" for a plateau that is five octaves old, beside how often the last checkpoint is the highest, and for a
  rise that is half-way up half an octave before the end.

The jitter keeps its size, or falls twelvefold from the first checkpoint to the last.
"""

import argparse

import numpy as np
from scipy.special import expit
from simulator import GRIDS

from sih.emergence.association import residual_association
from sih.emergence.onset import octaves, still_rising

JITTER, SHARED = 0.05, 0.8


def path(size_C: np.ndarray, autocorrelation: float, rng: np.random.Generator) -> np.ndarray:
    """An AR(1) series of standard deviation `size_C`, (C,)."""
    fresh_C, found_C = rng.normal(size=len(size_C)), np.empty(len(size_C))
    found_C[0] = fresh_C[0]
    for c in range(1, len(size_C)):
        found_C[c] = autocorrelation * found_C[c - 1] + np.sqrt(1 - autocorrelation**2) * fresh_C[c]
    return size_C * found_C


def rates(grid: int, autocorrelation: float, falls: bool, repeats: int) -> list[float]:
    x_C = octaves(np.array(GRIDS[grid]))
    size_C = JITTER * (np.exp(-np.log(12) * x_C / x_C[-1]) if falls else np.ones(len(x_C)))
    hits = np.zeros(5)
    for r in range(repeats):
        rng = np.random.default_rng([grid, int(10 * autocorrelation), falls, r])
        one, other, third = (path(size_C, autocorrelation, rng) for _ in range(3))
        heads_C, icl_C = expit((x_C - 7) / 0.4), expit((x_C - 9) / 0.4)
        together_C = SHARED * one + np.sqrt(1 - SHARED**2) * third
        plateau_C, late_C = (expit((x_C - x_C[-1] + old) / width) + other for old, width in ((5, 0.4), (0.5, 0.7)))
        hits += [
            residual_association(x_C, heads_C + one, icl_C + other, 0.5, r)[1] <= 0.05,
            residual_association(x_C, heads_C + one, icl_C + together_C, 0.5, r)[1] <= 0.05,
            still_rising(x_C, plateau_C),
            plateau_C.argmax() == len(x_C) - 1,
            still_rising(x_C, late_C),
        ]
    return list(hits / repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=600)
    args = parser.parse_args()
    columns = ("checkpoints", "autocorrelation", "jitter", "p_residual <= .05, unrelated", "sharing jitter",
               "plateau still rising", "plateau highest at the end", "late rise still rising")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for grid in (23, 38, 154):
        for autocorrelation in (0.0, 0.5, 0.8):
            for falls in (False, True):
                found = rates(grid, autocorrelation, falls, args.repeats)
                told = " | ".join(f"{rate:.3f}" for rate in found)
                print(f"| {grid} | {autocorrelation} | {'falls' if falls else 'stays'} | {told} |", flush=True)


if __name__ == "__main__":
    main()
