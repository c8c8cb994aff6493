"""Trajectories with a known onset: what the emergence statistics are calibrated on.

A run's true curve f(x) over x = log2(step + 1) is one of SHAPES, from 0 to 1. Every checkpoint adds jitter that all
documents share, which resampling documents cannot show. Every document has its own level and its own size of rise.

Letters: D documents, C checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from sih.checkpoints.schedule import PYTHIA_STEPS, choose
from sih.emergence.onset import octaves
from sih.results.trajectory import Trajectory

GRIDS = {
    10: [0, 8, 64, 256, 512, 2000, 8000, 32000, 64000, 143000],
    23: [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 32000, 64000,
         96000, 143000],
    38: choose("log", list(PYTHIA_STEPS)),
    68: [0, 1, 8, 64, 256, 512, 700, *(int(s) for s in np.geomspace(1000, 143000, 61).round())],
    154: list(PYTHIA_STEPS),
}  # fmt: skip

Curve = Callable[[np.ndarray, float], np.ndarray]
SHAPES: dict[str, Curve] = {
    "sigmoid": lambda x, m: expit((x - m) / 0.4),
    "step": lambda x, m: (x >= m).astype(float),
    "gompertz": lambda x, m: np.exp(-np.log(2) * np.exp(-(x - m) / 0.7)),
    "transient": lambda x, m: expit((x - m) / 0.3) * (1 - 0.7 * expit((x - m - 3) / 0.4)),
    "drift": lambda x, m: 0.8 * expit((x - m) / 0.4) + 0.2 * x / 17.13,
}
KINDS = ("mean", "binomial", "ratio")


@dataclass(frozen=True)
class Setting:
    """The properties of one simulated series. `rise` is in the score's unit, `jitter` is a share of the rise."""

    shape: str  # of SHAPES, or flat
    grid: int
    kind: str
    rise: float = 0.3
    jitter: float = 0.04
    autocorrelation: float = 0.5  # of the jitter, from one checkpoint to the next
    documents: int = 200
    fall: float = 1.0  # how many times as large the jitter is at the first checkpoint as at the last, evenly in octaves


def true_onset(setting: Setting, middle: float) -> float:
    """Where the true curve first reaches half of its rise from the first checkpoint to its peak, octaves."""
    x = np.linspace(0, octaves(np.array(GRIDS[setting.grid]))[-1], 20001)
    y = SHAPES[setting.shape](x, middle)
    return float(x[np.argmax(y >= (y[0] + y.max()) / 2)])


def jitter(setting: Setting, checkpoints: int, rng: np.random.Generator) -> np.ndarray:
    """An AR(1) series, (C,), of standard deviation `setting.jitter * setting.rise`, in the middle if it falls."""
    return jitters(setting, checkpoints, 1, rng)[0]


def jitters(setting: Setting, checkpoints: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` such series, (count, C)."""
    phi, fresh_NC = setting.autocorrelation, rng.normal(size=(count, checkpoints))
    found_NC = fresh_NC.copy()
    for c in range(1, checkpoints):
        found_NC[:, c] = phi * found_NC[:, c - 1] + np.sqrt(1 - phi**2) * fresh_NC[:, c]
    x_C = octaves(np.array(GRIDS[setting.grid]))
    return setting.jitter * setting.rise * setting.fall ** (0.5 - x_C / x_C[-1]) * found_NC


def answered(wanted_C: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Prompts answered, 0 or 1, (D, C): where difficulty and luck are below the model's skill."""
    latent_DC = np.sqrt(0.5) * rng.normal(size=(count, 1)) + np.sqrt(0.5) * rng.normal(size=(count, len(wanted_C)))
    return (latent_DC < norm.ppf(np.clip(wanted_C, 0.01, 0.99))).astype(float)


def few_shot(prompts: int, autocorrelation: float, rng: np.random.Generator) -> Trajectory:
    """A share at chance (.25) up to step 700, and from step 1000 on at .75 with jitter of sd .06; 68 checkpoints.

    Public few-shot accuracies look like this.
    """
    later_C = np.array(GRIDS[68]) >= 1000
    shared_C = jitter(Setting("step", 68, "binomial", 1.0, 0.06, autocorrelation), len(later_C), rng)
    numerator_DC = answered(np.where(later_C, 0.75 + shared_C, 0.25), prompts, rng)
    names = [f"d{i}" for i in range(prompts)]
    return Trajectory("few-shot", "icl", "prompts", names, numerator_DC, np.ones_like(numerator_DC), 1, 0.1)


def simulated(
    setting: Setting, middle: float, rng: np.random.Generator, name: str = "series", kind: str = "heads"
) -> Trajectory:
    """One series of documents; its curve rises from a base of its kind by `setting.rise`."""
    x_C = octaves(np.array(GRIDS[setting.grid]))
    rise_C = np.zeros(len(x_C)) if setting.shape == "flat" else SHAPES[setting.shape](x_C, middle)
    shared_C = jitter(setting, len(x_C), rng)
    count = setting.documents
    level_D1, size_D1 = rng.normal(0, 0.3, (count, 1)) * setting.rise, rng.normal(1, 0.3, (count, 1))
    if setting.kind == "binomial":
        numerator_DC = answered(0.25 + setting.rise * rise_C + shared_C, count, rng)
        denominator_DC = np.ones_like(numerator_DC)
    else:
        mean_DC = 0.1 + level_D1 + setting.rise * size_D1 * rise_C + shared_C
        if setting.kind == "mean":
            numerator_DC = mean_DC + rng.normal(0, setting.rise, mean_DC.shape)
            denominator_DC = np.ones_like(numerator_DC)
        else:  # a share, summed over the random number of events that the document has at this checkpoint
            rate_D1 = rng.gamma(2.0, 1.0, (count, 1))
            denominator_DC = rng.poisson(rate_D1, mean_DC.shape).astype(float)
            numerator_DC = denominator_DC * mean_DC + np.sqrt(denominator_DC) * rng.normal(0, 0.3, mean_DC.shape)
    return Trajectory(
        name, kind, name, [f"d{i}" for i in range(count)], numerator_DC, denominator_DC, 1,
        0.1 if setting.kind == "binomial" else 0.05,
    )  # fmt: skip
