"""What all figures share: the log step axis, colours that are safe for the colour-blind, and how they are saved."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

matplotlib.use("Agg")

# Okabe and Ito (2008): distinguishable with any colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
GREY = "#888888"
DOTS = 150  # per inch, of the PNGs

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.hashsalt": "sih",  # the same figure gives the same bytes
    }
)


def step_axis(axes: Axes, steps: np.ndarray, narrow: bool = False) -> None:
    """x is log2(step + 1), labelled with steps; with fewer labels where the panel is narrow."""
    wanted = [0, 16, 256, 4000] if narrow else [0, 1, 4, 16, 64, 256, 1000, 4000, 16000, 64000]
    last, apart = int(steps[-1]), 4 if narrow else 2  # octaves that a label takes
    ticks = [t for t in wanted if steps[0] <= t and np.log2(last + 1) - np.log2(t + 1) > apart] + [last]
    axes.xaxis.set_major_locator(FixedLocator([float(np.log2(t + 1)) for t in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(round(2**x - 1))))
    axes.set_xlim(np.log2(steps[0] + 1) - 0.2, np.log2(last + 1) + 0.2)


def dots(x_C: np.ndarray, size: float) -> dict:
    """Markers of a line: at checkpoints at least a quarter of an octave apart, since closer ones merge into a blob."""
    kept, last = [], -np.inf
    for n, x in enumerate(x_C):
        if x - last >= 0.25:
            kept.append(n)
            last = x
    return {"marker": "o", "markersize": size, "markevery": kept}


def short(step: int) -> str:
    """143000 -> "143k"; 1536 stays."""
    return f"{step // 1000}k" if step >= 1000 and step % 1000 == 0 else str(step)


def arrays(row: dict, *names: str) -> list[np.ndarray]:
    """Lists of emergence.json over the checkpoints as arrays; null is NaN."""
    return [np.array(row[name], dtype=float) for name in names]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """`name`.png and `name`.svg, without dates inside."""
    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure.savefig(files[0], dpi=DOTS, metadata={"Software": None})
    figure.savefig(files[1], metadata={"Date": None})
    plt.close(figure)
    return files
