"""One score over training, as arrays by document: what the emergence statistics time.

Letters: D documents, C checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trajectory:
    """One score over training: at each checkpoint, the sum of `numerator_DC` / the sum of `denominator_DC`.

    Sums are over documents. A checkpoint whose summed denominator is 0 or whose value is NaN is missing.

    kind: heads, icl or effects.
    pool: documents of the same name in one pool are the same, and are resampled with the same weights.
    sign: +1 when a larger value means more, -1 for losses.
    delta: the smallest rise that counts, in the score's unit.
    excess_DC: as numerator_DC, for the score minus what it must exceed at its peak: chance, or the largest null on the
        same events; None if it has neither. Over a null, it is what is timed: see `timed`.
    heads: those whose own values it is the mean of, such as L1H0; events_C: how many events they have together.
    null_C: the value minus its excess, where that is over a null.
    heads_of: the series that chose the heads, None if it is this one.
    share: whether the denominators count answers and the numerators those that are right.
    members: a family is the mean of these series with equal weight; its onset is the median of theirs.
    """

    name: str
    kind: str
    pool: str
    documents: Sequence[str]
    numerator_DC: np.ndarray
    denominator_DC: np.ndarray
    sign: int
    delta: float
    excess_DC: np.ndarray | None = None
    label: str = ""
    unit: str = ""
    chance: float | None = None
    heads: tuple[str, ...] = ()
    events_C: np.ndarray | None = None
    null_C: np.ndarray | None = None
    heads_of: str | None = None
    share: bool = False
    members: tuple[str, ...] = ()
    headline: bool = True

    @property
    def value_C(self) -> np.ndarray:
        """The score at each checkpoint, (C,), in its unit; NaN where it is missing."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.numerator_DC.sum(0) / self.denominator_DC.sum(0)

    @property
    def timed(self) -> tuple[np.ndarray, np.ndarray]:
        """Numerators and denominators of what is gated and timed: the score, or its excess over the largest null.

        A null is measured too, and may itself rise, so a rise of the score alone would show nothing.
        """
        if self.null_C is None or self.excess_DC is None:
            return self.numerator_DC, self.denominator_DC
        return self.excess_DC, np.ones_like(self.excess_DC)

    @property
    def timed_C(self) -> np.ndarray:
        """What is gated and timed, at each checkpoint, (C,); NaN where it is missing."""
        numerator_DC, denominator_DC = self.timed
        with np.errstate(invalid="ignore", divide="ignore"):
            return numerator_DC.sum(0) / denominator_DC.sum(0)


def label(layer: int, head: int) -> str:
    """A head's name: L3H5."""
    return f"L{layer}H{head}"


def family(name: str, members: Sequence[Trajectory], headline: bool) -> Trajectory:
    """The mean of the members' values with equal weight, as what each document contributes to it.

    Documents of different members are independent and all are kept; chance is the mean of the members' chances.
    """
    count = sum(len(m.documents) for m in members)
    chances = [m.chance for m in members if m.chance is not None]
    chance = float(np.mean(chances)) if len(chances) == len(members) else None
    mean_C = np.mean([m.value_C for m in members], axis=0)
    parts = []
    for m in members:
        with np.errstate(invalid="ignore", divide="ignore"):
            beyond_DC = (m.numerator_DC - m.value_C * m.denominator_DC) / m.denominator_DC.sum(0)
        few = np.sqrt(len(m.documents) / max(len(m.documents) - 1, 1))  # each member has a mean of its own
        parts.append(mean_C + few * count / len(members) * beyond_DC)
    numerator_DC = np.concatenate(parts)
    first = members[0]
    return Trajectory(
        name=name,
        kind=first.kind,
        pool=first.pool,
        documents=tuple(d for m in members for d in m.documents),
        numerator_DC=numerator_DC,
        denominator_DC=np.ones_like(numerator_DC),
        sign=first.sign,
        delta=first.delta,
        excess_DC=None if chance is None else numerator_DC - chance,
        label=name.replace("_", " "),
        unit=first.unit,
        chance=chance,
        members=tuple(m.name for m in members),
        headline=headline,
    )
