"""Several runs together: onsets over seeds and sizes; does in-context learning emerge later where heads form later?"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sih.emergence.association import seed_association
from sih.emergence.over_runs import OverSeeds, lead, means, over_seeds, over_sizes


def across(runs: Sequence[tuple[str, int, dict]], seed: int) -> tuple[list[dict], list[dict], list[dict], list[dict]]:
    """Rows per run and headline series; per pair of headline series; per model and series or pair; and per series.

    Args:
        runs: (model, seed, result of `of_run.analysed`) of every run.

    A pair's `lag_oct` is the mean over the runs in which both emerged, `lag_sd` their standard deviation;
    `r_seed` and `p_seed_perm` are within models, NaN with fewer than six runs of one model. The rows by model hold
    `OverSeeds` of onsets (octaves of steps) and of lags, with a decision; those by series `OverSizes`.
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
            decided = [_pair(result, heads, icl).get("decision") for _, _, result in runs]
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
    return series, pairs, _by_model(runs, kinds), _by_size(runs, kinds)


def _by_model(runs: Sequence[tuple[str, int, dict]], kinds: Mapping[str, str]) -> list[dict]:
    """Onsets and lags over the seeds of each model that has several."""
    found = []
    for model in dict.fromkeys(model for model, _, _ in runs):
        results = [result for other, _, result in runs if other == model]
        if len(results) < 2:
            continue
        for name in kinds:
            rows = [_row(result, name) for result in results]
            bracket = [r["ci_bracket_hi_log2"] - r["ci_bracket_lo_log2"] for r in rows if r.get("t50_log2") is not None]
            values = _combined(rows, "t50_log2", "ci_jump_lo_log2", "ci_jump_hi_log2")
            found.append({"model": model, "series": name} | vars(values) | {"bracket": means(bracket)})
        for heads in (name for name, kind in kinds.items() if kind == "heads"):
            for icl in (name for name, kind in kinds.items() if kind == "icl"):
                values = _combined(
                    [_pair(result, heads, icl) for result in results], "lag_oct", "ci_jump_lo", "ci_jump_hi"
                )
                named = {"model": model, "heads": heads, "icl": icl}
                found.append(named | vars(values) | {"decision": lead(values)})
    return found


def _by_size(runs: Sequence[tuple[str, int, dict]], kinds: Mapping[str, str]) -> list[dict]:
    """Onsets, in tokens, against parameters; none where models do not tell both."""
    able = [run for run in runs if run[2].get("tokens_per_step") and run[2].get("parameters")]
    models = list(dict.fromkeys(model for model, _, _ in able))
    found = []
    for name in kinds:
        size_M, tokens_M = [], []
        for model in models:
            mine = [result for other, _, result in able if other == model]
            steps = [_row(result, name).get("t50_step") for result in mine]
            size_M.append(math.log2(mine[0]["parameters"]))
            logs = [math.log2(step * r["tokens_per_step"]) for step, r in zip(steps, mine, strict=True) if step]
            tokens_M.append(means(logs))
        if models:
            found.append({"series": name} | vars(over_sizes(np.array(size_M), np.array(tokens_M))))
    return found


def _combined(rows: Sequence[dict], value: str, low: str, high: str) -> OverSeeds:
    values = [[_number(row.get(key)) for row in rows] for key in (value, low, high)]
    return over_seeds(*np.array(values, dtype=float))


_KEPT = ("series", "kind", "emerged", "t50_log2", "t50_step", "ci_jump_lo_log2", "ci_jump_hi_log2", "cell_lo_step",
         "cell_hi_step", "rise", "p_emergence", "flags")  # fmt: skip


def _row(result: dict, name: str) -> dict:
    return next((r for r in result["series"] if r["series"] == name), {})


def _pair(result: dict, heads: str, icl: str) -> dict:
    return next((p for p in result["pairs"] if (p["heads"], p["icl"]) == (heads, icl)), {})


def _onset(result: dict, name: str) -> float:
    return _number(_row(result, name).get("t50_log2"))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
