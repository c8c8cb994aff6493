"""Which checkpoints to measure next: those that narrow the interval of a lag most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sih.emergence.onset import octaves


@dataclass(frozen=True)
class Cell:
    """Where one onset lies: between two measured steps, with a share `jump` of the rise between them."""

    lower: int
    upper: int
    jump: float

    @property
    def width(self) -> float:
        """Octaves that the checkpoints leave open."""
        low, high = octaves(np.array([self.lower, self.upper]))
        return float(self.jump * (high - low))

    def split(self, step: int) -> list["Cell"]:
        return [Cell(self.lower, step, self.jump), Cell(step, self.upper, self.jump)]


def suggested(
    cells: Sequence[Cell], offered: Sequence[int], measured: Sequence[int], count: int
) -> list[tuple[int, float]]:
    """At most `count` steps that are offered and not measured, in increasing order, and by how many octaves each is
    expected to narrow the open widths, summed over the cells.

    Greedy: each next step is the one that narrows most, after those before it. The onset is taken to be anywhere in
    its cell with equal probability (octaves), so a cell of width w cut into a and b is expected to leave
    (a^2 + b^2) / w. Several onsets in one cell count several times. Fewer steps, or none, when no other step lies
    inside a cell.
    """
    pieces = [[cell] for cell in cells]
    widths = [cell.width for cell in cells]
    chosen: list[tuple[int, float]] = []
    candidates = sorted(set(offered) - set(measured))
    for _ in range(count):
        gains = [sum(_gain(part, whole, s) for part, whole in zip(pieces, widths, strict=True)) for s in candidates]
        if not gains or max(gains) <= 0:
            break
        best = int(np.argmax(gains))
        step = candidates.pop(best)
        chosen.append((step, float(gains[best])))
        pieces = [_cut(part, step) for part in pieces]
    return sorted(chosen)


def _gain(pieces: list[Cell], width: float, step: int) -> float:
    """How much less of `width` octaves is expected to stay open when `step` is measured too."""
    if width == 0:
        return 0.0
    return sum(
        piece.width**2 - sum(part.width**2 for part in piece.split(step))
        for piece in pieces
        if piece.lower < step < piece.upper
    ) / width  # fmt: skip


def _cut(pieces: list[Cell], step: int) -> list[Cell]:
    return [p for piece in pieces for p in (piece.split(step) if piece.lower < step < piece.upper else [piece])]
