"""Which checkpoints: steps, their training tokens, grids of them, and the named schedules."""

import difflib
import math

from omegaconf import ListConfig

from sih.errors import SihError

# The checkpoints of every Pythia model, 154 of them; conf/_pythia.yaml has the same grid.
PYTHIA_STEPS = (0, *(2**k for k in range(10)), *range(1000, 143001, 1000))
SCHEDULES = ("all", "dense", "log", "smoke")


def revision(step: int) -> str:
    """What sih calls a checkpoint that it trains: 3000 -> "step3000"."""
    return f"step{step}"


def grid_of(parts: object) -> list[int]:
    """The steps of a grid, in increasing order: numbers, and [first, last, every] for each `every` steps between.

    Raises:
        SihError: another form.
    """
    found: set[int] = set()
    for part in parts if isinstance(parts, list | tuple | ListConfig) else []:
        match part if isinstance(part, int) else list(part):
            case int(step):
                found.add(step)
            case [int(first), int(last), int(every)] if every > 0:
                found |= set(range(first, last + 1, every))
            case other:
                raise SihError(f"model.grid: {other}; expected steps, and [first, last, every] for several")
    return sorted(found)


def tokens_of(step: int, tokens_per_step: int | None) -> int | None:
    """Training tokens seen by a checkpoint: 3000 -> 6,291,456,000 for Pythia; None where they are unknown."""
    return None if tokens_per_step is None else step * tokens_per_step


def readable_tokens(count: float, digits: int = 2) -> str:
    """2,097,152 -> "2.1M", with at most so many digits after rounding, unless whole numbers have more."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.{digits}g}{unit}" if count < 99.5 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


def in_ranges(steps: list[int], among: list[int]) -> str:
    """Steps as text, with neighbours in `among` joined into ranges: "0-512, 2000"."""
    place = {step: i for i, step in enumerate(among)}
    runs: list[list[int]] = []
    for step in sorted(steps):
        if runs and place[step] == place[runs[-1][-1]] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def choose(steps: object, offered: list[int]) -> list[int]:
    """The chosen steps in increasing order.

    Args:
        steps: a schedule's name, one step, or a list of steps.
            `all`: everything offered. `dense`: everything to step 5000, then 8 an octave.
            `log`: everything to step 512, then 4 an octave. `smoke`: first, middle and last of `log`.
        offered: the steps that the source has, increasing.

    Raises:
        SihError: an unknown schedule, a step that is not offered (the nearest ones are named), or nothing chosen.
    """
    if isinstance(steps, str) and not steps.isdecimal():
        if steps not in SCHEDULES:
            close = difflib.get_close_matches(steps, SCHEDULES, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SihError(f"steps={steps}: expected {', '.join(SCHEDULES)} or a list such as steps=[0,512,1000]{hint}")
        if steps == "all":
            return list(offered)
        if steps == "dense":
            return _thinned(offered, 5000, 8)
        log = _thinned(offered, 512, 4)
        return log if steps == "log" else sorted({log[0], log[len(log) // 2], log[-1]})
    listed = list(steps) if isinstance(steps, list | tuple | ListConfig) else [steps]
    try:
        wanted = sorted({int(str(s)) for s in listed})
    except ValueError:
        raise SihError(f"steps={steps}: expected whole numbers, such as steps=[0,512,1000]") from None
    if not wanted:
        raise SihError("steps=[]: expected at least one step")
    missing = [s for s in wanted if s not in set(offered)]
    if missing:
        near = sorted(offered, key=lambda s: (abs(s - missing[0]), s))[:4]
        raise SihError(
            f"step{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}: no such checkpoint; "
            f"nearest to {missing[0]}: {', '.join(map(str, sorted(near)))} "
            f"(of {len(offered)}, {offered[0]} to {offered[-1]})"
        )
    return wanted


def _thinned(offered: list[int], until: int, per_octave: int) -> list[int]:
    """Everything to `until`, then the steps nearest in log-time to an even log grid, and the last."""
    kept = {s for s in offered if s <= until} | {offered[-1]}
    late = [s for s in offered if s > until]
    if late:
        octaves = math.log2(late[-1] / max(until, 1))
        for k in range(1, int(octaves * per_octave) + 1):
            target = math.log2(max(until, 1)) + k / per_octave
            kept.add(min(late, key=lambda s: abs(math.log2(s) - target)))
    return sorted(kept)
