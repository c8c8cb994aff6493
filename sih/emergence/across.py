"""Several runs together: does in-context learning emerge later where heads form later?"""

import math
from collections.abc import Sequence

import numpy as np

from sih.emergence.association import seed_association


def across(runs: Sequence[tuple[str, int, dict]], seed: int) -> tuple[list[dict], list[dict]]:
    """One row per run and headline series, and one per pair of headline series with the tests over runs.

    Args:
        runs: (model, seed, result of `analyse` with `headline`) of every run.

    A pair's `lag_oct` is the mean over the runs in which both emerged, `lag_sd` their standard deviation;
    `r_seed` and `p_seed_perm` are within models, NaN with fewer than six runs of one model.
    """
    series: list[dict] = [
        {"model": model, "model_seed": number} | {k: row.get(k) for k in _KEPT}
        for model, number, result in runs
        for row in result["series"]
        if row["series"] in result["headline"]
    ]
    kinds = {str(row["series"]): row["kind"] for row in series}
    pairs = []
    for heads in (name for name, kind in kinds.items() if kind == "heads"):
        for icl in (name for name, kind in kinds.items() if kind == "icl"):
            onset_R2 = np.array([[_onset(result, name) for name in (heads, icl)] for _, _, result in runs])
            lag_R = onset_R2[:, 1] - onset_R2[:, 0]
            lag_R = lag_R[np.isfinite(lag_R)]
            r, p, used = seed_association(onset_R2[:, 0], onset_R2[:, 1], [model for model, _, _ in runs], seed)
            decided = [_decision(result, heads, icl) for _, _, result in runs]
            pairs.append(
                {
                    "heads": heads,
                    "icl": icl,
                    "n_runs": len(runs),
                    "n_both_emerged": len(lag_R),
                    "lag_oct": float(lag_R.mean()) if len(lag_R) else math.nan,
                    "lag_sd": float(lag_R.std(ddof=1)) if len(lag_R) > 1 else math.nan,
                    "heads_lead": decided.count("heads_lead"),
                    "icl_leads": decided.count("icl_leads"),
                    "r_seed": r,
                    "p_seed_perm": p,
                    "n_seeds": used,
                }
            )
    return series, pairs


_KEPT = ("series", "kind", "emerged", "t50_log2", "t50_step", "ci_jump_lo_log2", "ci_jump_hi_log2", "cell_lo_step",
         "cell_hi_step", "rise", "p_emergence", "flags")  # fmt: skip


def _onset(result: dict, name: str) -> float:
    row: dict = next((r for r in result["series"] if r["series"] == name), {})
    onset = row.get("t50_log2")
    return math.nan if onset is None else onset


def _decision(result: dict, heads: str, icl: str) -> str | None:
    return next((p["decision"] for p in result["pairs"] if (p["heads"], p["icl"]) == (heads, icl)), None)
