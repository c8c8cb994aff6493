"""Which heads are taken out together: groups by score, and control sets that match them.

Letters: L layers, H heads.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from math import comb, prod

import numpy as np

from sih.models.replacing import Head
from sih.scores import FEWEST_SETS, Ranking

CHOSEN = ("here", "last")
LAYER, ANYWHERE, NAMED, NONE = "layer", "any layer", "named heads too", "none"
RELABELLED = "relabelled"
_LISTED = 10_000  # as many possible sets are listed; of more, random ones are drawn until enough differ


@dataclass(frozen=True)
class HeadSet:
    """Heads that are taken out together, the best first.

    group: the head series that they lead. chosen: at the measured checkpoint (`here`) or at the last one (`last`).
    kind: `group`, its heads; `apart`, its best heads but those that lead another group; `few`, its best few where it
        has more; `single`, each of these alone; `random`, the group at the last checkpoint beside `relabelled` sets.
    controls: sets that match it, as `matched` says: see `matching`.
    """

    group: str
    chosen: str
    kind: str
    heads: tuple[Head, ...]
    controls: tuple[tuple[Head, ...], ...] = ()
    matched: str = NONE


@dataclass(frozen=True)
class Sizes:
    """share, fewest: how many heads a group has, of all heads, and at least. few: how many are taken out alone, too.

    leading: the share of heads that `apart` leaves to each other group, at least one. controls: sets for each set.
    """

    share: float
    fewest: int
    few: int
    leading: float
    controls: int

    def of(self, heads: int) -> int:
        return max(self.fewest, round(self.share * heads))

    def leaders(self, heads: int) -> int:
        return max(1, round(self.leading * heads))


def best(excess_LH: np.ndarray, above: float) -> list[Head]:
    """The heads that exceed chance or their largest null by at least `above`, the best first."""
    found = np.argwhere(np.nan_to_num(excess_LH, nan=-np.inf) >= above)
    return sorted(((int(n), int(h)) for n, h in found), key=lambda head: (-excess_LH[head], head))


def sets_of(
    rankings: Mapping[str, Ranking], above: Mapping[str, float], sizes: Sizes, seed: int
) -> tuple[list[HeadSet], list[tuple[str, str]]]:
    """All sets of all groups, and the (group, chosen) that have no head above chance or its largest null.

    Named heads are those of any group, chosen here or at the last checkpoint, and those that lead one. At the last
    checkpoint groups also stand beside sets for the test over all of them, see `relabelled`.
    """
    ranked = {
        (name, chosen): best(getattr(ranking, chosen), above[name])
        for name, ranking in rankings.items()
        for chosen in CHOSEN
    }
    shape = next(iter(rankings.values())).here.shape
    size, leaders = sizes.of(shape[0] * shape[1]), sizes.leaders(shape[0] * shape[1])
    named = {head for heads in ranked.values() for head in heads[: max(size, leaders)]}
    free = [[(n, h) for h in range(shape[1]) if (n, h) not in named] for n in range(shape[0])]
    found: list[HeadSet] = []
    for (name, chosen), heads in ranked.items():
        others = {h for (other, at), theirs in ranked.items() if (other != name, at) == (True, chosen)
                  for h in theirs[:leaders]}  # fmt: skip
        apart = [h for h in heads if h not in others][:size]
        for kind, of_kind in (("group", heads[:size]), ("apart", apart if others else [])):
            if of_kind:
                found.append(
                    HeadSet(name, chosen, kind, tuple(of_kind), *matching(of_kind, free, shape, sizes.controls, seed))
                )
        if len(heads[:size]) > sizes.few:
            found.append(HeadSet(name, chosen, "few", tuple(heads[: sizes.few])))
        if heads[1:]:
            found += [HeadSet(name, chosen, "single", (h,)) for h in heads[: min(size, sizes.few)]]
    if all(np.array_equal(ranking.here, ranking.last, equal_nan=True) for ranking in rankings.values()):
        last = {name: tuple(heads[:size]) for (name, chosen), heads in ranked.items() if chosen == "last" and heads}
        controls = relabelled(list(last.values()), shape, sizes.controls, seed)
        found += [HeadSet(name, "last", "random", heads, of, RELABELLED) for (name, heads), of
                  in zip(last.items(), controls, strict=True)]  # fmt: skip
    return found, [key for key, heads in ranked.items() if not heads]


def relabelled(
    groups: Sequence[tuple[Head, ...]], shape: tuple[int, int], count: int, seed: int
) -> list[tuple[tuple[Head, ...], ...]]:
    """For every group, the sets that it becomes when the heads of each layer change places, `count` times.

    All groups change together, and any head may come in. So if what heads cost has nothing to do with the scores that
    they were chosen by, these draws and the groups are alike, whatever the costs and however groups overlap. Control
    sets without named heads are not like the groups: a layer has few heads, and its costliest may be among the group's
    own but never among theirs.
    """
    rng = np.random.default_rng([seed, *b"relabelled"])
    place_CLH = rng.random((count, *shape)).argsort(-1)
    return [tuple(tuple((n, int(place_LH[n, h])) for n, h in heads) for place_LH in place_CLH) for heads in groups]


def matching(
    heads: Sequence[Head], free: Sequence[Sequence[Head]], shape: tuple[int, int], count: int, seed: int
) -> tuple[tuple[tuple[Head, ...], ...], str]:
    """Up to `count` different sets like `heads`, and how they match it.

    As many heads in each layer, none of them named (`layer`): all such sets where there are fewer than `count`. Where
    they are too few for a rank p of .05, as many heads of any layer; then of all other heads, named ones too. Where
    even these are too few, the way that gives most. The same profile of layers always has the same controls, but in
    the last case.
    """
    profile = sorted(Counter(layer for layer, _ in heads).items())
    everywhere = [head for layer in free for head in layer]
    others = [(n, h) for n in range(shape[0]) for h in range(shape[1]) if (n, h) not in heads]
    ways: dict[str, list[tuple[Sequence[Head], int]]] = {
        LAYER: [(free[layer], k) for layer, k in profile],
        ANYWHERE: [(everywhere, len(heads))],
        NAMED: [(others, len(heads))],
    }
    sets = {way: prod(comb(len(pool), k) for pool, k in pools) for way, pools in ways.items()}
    matched = next((way for way in ways if sets[way] >= min(count, FEWEST_SETS)), max(ways, key=lambda way: sets[way]))
    pools, possible = ways[matched], sets[matched]
    rng = np.random.default_rng([seed, *(n for pair in profile for n in pair)])
    if possible <= _LISTED:
        listed = [tuple(chain(*parts)) for parts in product(*(combinations(pool, k) for pool, k in pools))]
        drawn = [listed[i] for i in sorted(rng.permutation(len(listed))[:count])]
    else:
        different: dict[tuple[Head, ...], None] = {}
        while len(different) < count:
            parts = [sorted(rng.choice(len(pool), k, replace=False)) for pool, k in pools]
            different[tuple(pool[i] for (pool, _), part in zip(pools, parts, strict=True) for i in part)] = None
        drawn = list(different)
    return tuple(drawn), matched if drawn else NONE


def rank_p(cost: float, controls: Sequence[float]) -> float:
    """p of a set that is drawn like its controls to cost at least as much: (1 + those that do) / (1 + all).

    Exact, since under the null all ranks are as likely; NaN without controls.
    """
    if not len(controls):
        return float("nan")
    return float((1 + (np.asarray(controls) >= cost).sum()) / (1 + len(controls)))
