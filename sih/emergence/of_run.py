"""One run's answer: onsets and lags of every series, which heads emerge, and the sentence."""

import math
from collections.abc import Sequence

import numpy as np

from sih.config import EmergenceConfig
from sih.emergence import sensitivity
from sih.emergence.answer import answer_of
from sih.emergence.effects import effects_of
from sih.emergence.gate import FEWEST
from sih.emergence.heads import HeadOnsets, control_onsets, head_onsets, traced_back
from sih.emergence.intervals import document_interval, family_interval
from sih.emergence.onset import by_gaps, half_rises, octaves
from sih.emergence.routing import decomposed
from sih.emergence.suggest import Cell, suggested
from sih.emergence.timing import analyse
from sih.results.heads import HeadSums
from sih.results.run import equal_weights, suspect
from sih.results.trajectories import Trajectories
from sih.results.trajectory import Trajectory, label

UNITS = {
    "time": "octaves, log2(step + 1); columns ending in _step are optimiser steps",
    "lag_oct": "T50(ICL) - T50(heads), octaves; positive: heads lead",
    "intervals": "doc (documents resampled), jump (widened by the jump share), bracket (cell ends); "
    "95 % of onsets, 98 % of lags",
}


def analysed(data: Trajectories, options: EmergenceConfig, suggest: int) -> dict:
    """Everything in one run's emergence.json except its digests and options.

    Args:
        suggest: name at most this many checkpoints that would narrow the lags.
    """
    run, steps = data.run, [int(s) for s in data.steps]
    rows, pairs, heads = decisions(data, options)
    intervals = _intervals(data.series)
    for row, series in zip(rows, data.series, strict=True):
        row |= _shown(series, *intervals[series.name])
    shown = [s.name for s in data.headline]
    timed = {name for s in data.headline for name in s.members or (s.name,)}  # brackets are of single series
    can_measure = sorted({*run.record.offered} - {*run.record.refused} - {*run.failed()})
    more = narrowing([r for r in rows if r["series"] in timed], steps, can_measure, suggest)
    manifests = run.manifests()
    found = {
        "units": UNITS,
        "model": run.model,
        "tokens_per_step": run.record.model.get("tokens_per_step"),
        "parameters": next((m["shape"].get("parameters") for of in manifests.values() for m in of.values()), None),
        "seed": data.seed,
        "bootstrap": options.bootstrap,
        "steps": steps,
        "failed_steps": {
            str(step): "; ".join(f"{score}: {reason}" for score, reason in found.items())
            for step, found in run.failed().items()
        },
        "equal_weights": equal_weights(manifests),
        "suspect_steps": suspect(manifests),
        "damaged": dict(run.damaged),
        "headline": shown,
        "left_out": data.left_out,
        "suggested": [step for step, _ in more],
        "suggested_narrows_oct": [narrows for _, narrows in more],
        "sensitivity": sensitivity.of_run(data, options, rows, pairs),
        "series": rows,
        "pairs": pairs,
        "heads": heads,
        "roles": _roles(data),
        "effects": effects_of(data, options),
    }
    return {"answer": answer_of(found), **found}


def decisions(data: Trajectories, options: EmergenceConfig) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of series, of pairs and of heads: everything that is decided; benchmarks/calibration.py calls this too."""
    heads, controls = _heads(data, options)
    steps = [int(s) for s in data.steps]
    return *analyse(steps, data.series, options.bandwidth_oct, options.bootstrap, data.seed, controls), heads


def _intervals(trajectories: Sequence[Trajectory]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """95 % intervals at every checkpoint, by series; a family's from those of its members."""
    found = {t.name: document_interval(t) for t in trajectories if not t.members}
    by_name = {t.name: t for t in trajectories}
    for family in (t for t in trajectories if t.members):
        value_MC = np.stack([by_name[name].value_C for name in family.members])
        low_MC, high_MC = (np.stack([found[name][end] for name in family.members]) for end in (0, 1))
        found[family.name] = family_interval(value_MC, low_MC, high_MC)
    return found


def _shown(series: Trajectory, low_C: np.ndarray, high_C: np.ndarray) -> dict:
    """What figures and tables show of a series: its values at every checkpoint, with 95 % intervals over documents."""
    return {
        "label": series.label,
        "unit": series.unit,
        "sign": series.sign,
        "heads": list(series.heads),
        "heads_of": series.heads_of,
        "members": list(series.members),
        "chance": series.chance,
        "headline": series.headline,
        "value": series.value_C.tolist(),
        "low": low_C.tolist(),
        "high": high_C.tolist(),
        "null": None if series.null_C is None else series.null_C.tolist(),
    }


def _roles(data: Trajectories) -> list[dict]:
    """Every head of a headline series: which series, and its value and largest null at the last checkpoint.

    Both come from the first of its series that has nulls (NaN when none has), on the half of the documents that the
    head was not chosen on.
    """
    roles: dict[str, list[str]] = {}
    for series in data.headline:
        for head in series.heads:
            roles.setdefault(head, []).append(series.name)
    found = []
    with_nulls = {
        s.name: data.head_sums[s.name] for s in data.headline if s.heads and data.head_sums[s.name].spec.nulls
    }
    last = {name: (sums.value_HC(False)[:, -1], sums.excess_HC(False)[:, -1])
            for name, sums in with_nulls.items()}  # fmt: skip
    for head, names in sorted(roles.items(), key=lambda item: _place(item[0])):
        value, null = math.nan, math.nan
        for name in (n for n in names if n in with_nulls):
            h = with_nulls[name].heads.index(_place(head))
            value, null = float(last[name][0][h]), float(last[name][0][h] - last[name][1][h])
            break
        layer, number = _place(head)
        row = {"head": head, "layer": layer, "number": number, "series": names}
        found.append(row | {"value": value, "null": null})
    return found


def _place(head: str) -> tuple[int, int]:
    """L3H5 -> (3, 5)."""
    layer, number = head[1:].split("H")
    return int(layer), int(number)


def narrowing(rows: Sequence[dict], steps: list[int], offered: Sequence[int], count: int) -> list[tuple[int, float]]:
    """The offered checkpoints that narrow the rows' open brackets most, and by how much; none where nothing emerged."""
    cells = [Cell(r["cell_lo_step"], r["cell_hi_step"], r["jump_share"]) for r in rows if r["emerged"]]
    return suggested(cells, offered, steps, count)


def _heads(data: Trajectories, options: EmergenceConfig) -> tuple[list[dict], dict[str, np.ndarray]]:
    """For every head series: which heads emerge, and the other way round; the final top heads traced back; routing.

    Heads are chosen on one half of the documents (a rise of at least delta) and tested on the other. What rises is the
    excess over the largest null, where there are nulls; the other way round, that of a null over the index shows how
    many would by chance. Also a series' controls: the onsets, in octaves, of means of as many of the heads that emerge.
    """
    x_C, rows, controls = octaves(data.steps), [], {}
    for series in (s for s in data.series if s.name in data.head_sums and s.heads_of is None):
        name, sums, mine = series.name, data.head_sums[series.name], data.chosen(series.name)
        able = np.flatnonzero(sums.supported(half=True))
        heads, found, value_HC = _tested(data, sums, able, None, options)
        emerged = [h for h, yes in zip(heads, found.emerged_H, strict=True) if yes]
        controls[name] = control_onsets(
            x_C, value_HC[found.emerged_H], [h in mine for h in emerged], options.bandwidth_oct, data.seed
        )
        if sums.spec.control is None:
            continue
        _, null, _ = _tested(data, sums, able, sums.spec.control, options)
        rows.append(
            {
                "series": name,
                "label": series.label,
                "n_heads": len(able),
                "n_chosen": len(heads),
                "n_emerged": len(emerged),
                "n_control_emerged": int(null.emerged_H.sum()),
                "emerged": [label(*sums.heads[h]) for h in emerged],
                "t50_step": [float(2**t - 1) for t in found.t50_H[found.emerged_H]],
                "q_bh": [float(q) for q in found.q_H[found.emerged_H]],
                "overlap": _overlap(data, sums, len(mine)),
                "routing": _routing(sums, sorted(mine), x_C),
            }
        )
    return rows, controls


def _tested(
    data: Trajectories, sums: HeadSums, able: np.ndarray, reverse: str | None, options: EmergenceConfig
) -> tuple[list[int], HeadOnsets, np.ndarray]:
    """The heads that rise on the choosing half, their onsets on the other, and their values there, (chosen, C).

    Args:
        reverse: a null; what rises is then its excess over the score instead of the score's over all nulls.
    """
    x_C, delta, half_HC = octaves(data.steps), data.delta(sums.spec), sums.half_HC(reverse)
    heads = [int(h) for h in able[_rises(x_C, half_HC[able], options.bandwidth_oct) >= delta]]
    numerator_HDC, denominator_HDC = sums.by_document_HDC(heads, reverse)
    found = head_onsets(x_C, numerator_HDC, denominator_HDC, delta, options.bandwidth_oct, data.seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return heads, found, numerator_HDC.sum(1) / denominator_HDC.sum(1)


def _rises(x_C: np.ndarray, y_HC: np.ndarray, bandwidth: float) -> np.ndarray:
    """From base to top of every head, in the score's unit, (H,); -inf where nothing rises."""
    found = np.full(len(y_HC), -np.inf)
    for mine, seen_C in by_gaps(y_HC, FEWEST):
        onsets = half_rises(x_C[seen_C], y_HC[np.ix_(mine, seen_C)], bandwidth)
        found[mine] = np.where(np.isnan(onsets.t50), -np.inf, onsets.top - onsets.base)
    return found


def _overlap(data: Trajectories, sums: HeadSums, k: int) -> dict:
    found = traced_back(sums.value_HC(True), sums.value_HC(False), k)
    return {
        "k": found.k,
        "final": [label(*sums.heads[h]) for h in found.final],
        "share": found.overlap_C.tolist(),
        "index": found.index_C.tolist(),
        "ceiling": found.ceiling,
        "chance": found.chance,
    }


def _routing(sums: HeadSums, heads: list[int], x_C: np.ndarray) -> dict:
    sum_HC, scored_HC = (sums.total_HC(column, False)[heads] for column in (sums.spec.value, sums.spec.count))
    opportunities = float(sums.opportunities_D[~sums.chosen_on_D].sum())
    found = decomposed(sum_HC, scored_HC, opportunities, x_C <= x_C[0] + 1)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(found).items()}
