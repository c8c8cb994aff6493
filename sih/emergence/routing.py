"""What a rise in relation index per opportunity consists of: where heads look, or what they write when they do.

Letters: H heads, C checkpoints.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Routing:
    """Means over the heads of fixed support, (C,) each, with `total_C = rate_C's part + share_C's part`.

    `rate_C`: events per opportunity (the gate). `share_C`: OV share per event. `routing_C` and `ov_C`: what the
    change of each adds to the index per opportunity since the base; they add up to `total_C`.
    """

    heads: int
    rate_C: np.ndarray
    share_C: np.ndarray
    routing_C: np.ndarray
    ov_C: np.ndarray
    total_C: np.ndarray


def decomposed(sum_HC: np.ndarray, scored_HC: np.ndarray, opportunities: float, base_C: np.ndarray) -> Routing:
    """Kitagawa's (1955) two-part decomposition of index per opportunity = rate x share, for every head, then averaged.

    Args:
        sum_HC, scored_HC: summed shares and scored events of the heads, all with events at every checkpoint.
        opportunities: how many each head has, the same at every checkpoint.
        base_C: the base checkpoints, pooled.

    With r, a for rate and share: r a - r0 a0 = (r - r0) (a + a0) / 2 + (a - a0) (r + r0) / 2. A head is in the
    support when it has an event at every checkpoint. Otherwise its share is undefined somewhere, and the mean would
    be over a changing set of heads. Everything is NaN when no head is in the support, or nothing
    tells the opportunities.
    """
    kept = (scored_HC > 0).all(1)
    if not kept.any() or opportunities == 0:
        missing = np.full(sum_HC.shape[1], np.nan)
        return Routing(0, missing, missing, missing, missing, missing)
    sum_HC, scored_HC = sum_HC[kept], scored_HC[kept]
    rate_HC, share_HC = scored_HC / opportunities, sum_HC / scored_HC
    rate_H1 = scored_HC[:, base_C].sum(1, keepdims=True) / (opportunities * base_C.sum())
    share_H1 = sum_HC[:, base_C].sum(1, keepdims=True) / scored_HC[:, base_C].sum(1, keepdims=True)
    routing_HC = (rate_HC - rate_H1) * (share_HC + share_H1) / 2
    ov_HC = (share_HC - share_H1) * (rate_HC + rate_H1) / 2
    return Routing(
        int(kept.sum()),
        rate_HC.mean(0),
        share_HC.mean(0),
        routing_HC.mean(0),
        ov_HC.mean(0),
        (rate_HC * share_HC - rate_H1 * share_H1).mean(0),
    )
