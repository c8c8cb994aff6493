"""What all figures share: the log step axis, colours that are safe for the colour-blind, and how they are saved."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sih.checkpoints.schedule import readable_tokens
from sih.emergence.expected import SOURCE, induction_tokens
from sih.emergence.time_axis import axis_of

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


def step_axis(axes: Axes, steps: np.ndarray, emergence: dict, narrow: bool = False) -> None:
    """x is log2(step + 1), labelled with steps, or with training tokens where emergence["axis"] is tokens.

    With fewer labels where the panel is narrow.
    """
    tokens_per_step = axis_of(emergence).tokens_per_step
    if tokens_per_step is not None:
        _token_axis(axes, steps, tokens_per_step, narrow)
        return
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


def shared_axis(axis: str, tokens_per_step: Sequence[float | None]) -> dict:
    """The axis of several runs, in the form that `step_axis` takes: in tokens, its steps are the smallest run's."""
    return {"axis": axis, "tokens_per_step": min(n for n in tokens_per_step if n) if axis == "tokens" else None}


def on_shared(steps: Sequence[float], tokens_per_step: float | None, shared: dict) -> np.ndarray:
    """A run's steps as steps of the shared axis: the same, or those with as many tokens."""
    scale = 1.0 if shared["tokens_per_step"] is None else (tokens_per_step or np.nan) / shared["tokens_per_step"]
    return np.array(steps) * scale


def _token_axis(axes: Axes, steps: np.ndarray, tokens_per_step: float, narrow: bool) -> None:
    """Ticks at zero, at powers of ten of tokens, and at the end, on an axis of log2(step + 1)."""
    ends = np.log2(steps[0] + 1), np.log2(steps[-1] + 1)
    places = {float(np.log2(t / tokens_per_step + 1)): t for t in [0.0, *10.0 ** np.arange(2, 15)]}
    kept: dict[float, float] = {}
    for place, count in sorted(places.items()):
        if ends[0] <= place <= ends[1] and (not kept or place - max(kept) > (6 if narrow else 3)):
            kept[place] = count
    if ends[1] - max(kept, default=-np.inf) > (4 if narrow else 2):
        kept[ends[1]] = steps[-1] * tokens_per_step
    axes.xaxis.set_major_locator(FixedLocator(list(kept)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: readable_tokens((2**x - 1) * tokens_per_step)))
    axes.set_xlim(ends[0] - 0.2, ends[1] + 0.2)


def expected_induction(axes: Axes, steps: np.ndarray, emergence: dict) -> None:
    """A line where a published prediction has induction appear, named as theirs; none outside the checkpoints."""
    tokens_per_step = emergence.get("tokens_per_step")
    if tokens_per_step is None:
        return
    step = induction_tokens(tokens_per_step) / tokens_per_step
    if steps[0] < step < steps[-1]:
        label = f"as predicted in {SOURCE}"
        axes.axvline(np.log2(step + 1), color=COLOURS[3], linestyle="-.", linewidth=1, label=label)


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
