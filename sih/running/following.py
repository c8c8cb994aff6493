"""What a score that follows heads is given: which head series it follows, and where every head stands in them.

Letters: L layers, H heads.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from sih.config import EmergenceConfig
from sih.errors import CheckpointError
from sih.results.run import Run
from sih.results.trajectories import Trajectories
from sih.scores import Ranking, Series


def followed_series(run: Run, following: Mapping[str, Sequence[str]]) -> list[Series]:
    """The run's head series with a name like one of the patterns, by the score that offers them."""
    described = run.descriptions()
    return [
        series
        for score, patterns in following.items()
        for series in (Series(**s) for s in described.get(score, {}).get("series", ()))
        if series.kind == "heads" and series.heads_of is None and any(fnmatchcase(series.name, p) for p in patterns)
    ]


def rankings(
    run: Run, following: Mapping[str, Sequence[str]], options: EmergenceConfig, step: int, last: int
) -> dict[str, Ranking]:
    """Every followed series' ranking at this step and at the last one, by name.

    Raises:
        CheckpointError: one of the scores has no result at one of the two steps.
    """
    steps = sorted({step, last})
    for score in following:
        cells = run.scores.get(score)
        if cells is not None and (missing := sorted({*steps} - {*cells.steps()})):
            raise CheckpointError(
                f"heads are chosen by {score}, which has no result at step {missing[0]}"
                f"{' (the last)' if missing[0] == last else ''}"
            )
    data = Trajectories(run, options, steps)
    found = {}
    for series in followed_series(run, following):
        sums = data.head_sums[series.name]
        excess_HC = sums.excess_HC(True) if series.nulls else sums.value_HC(True) - (series.chance or 0.0)
        layers = 1 + max(layer for layer, _ in sums.heads)
        excess_CLH = series.sign * excess_HC.T.reshape(len(steps), layers, -1)
        found[series.name] = Ranking(*(excess_CLH[steps.index(s)] for s in (step, last)))
    return found
