"""One run's answer: onsets and lags of every series, which heads emerge, and the sentence."""

import math
from collections.abc import Sequence

import numpy as np

from sih.config import EmergenceConfig
from sih.emergence.answer import effects_clause, sentence
from sih.emergence.effects import effects_of
from sih.emergence.gate import FEWEST
from sih.emergence.heads import HeadOnsets, head_onsets, traced_back
from sih.emergence.intervals import document_interval, family_interval
from sih.emergence.onset import half_rise, octaves
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
    heads, controls = _heads(data, options)
    rows, pairs = analyse(steps, data.series, options.bandwidth_oct, options.bootstrap, data.seed, controls)
    intervals = _intervals(data.series)
    for row, series in zip(rows, data.series, strict=True):
        row |= _shown(series, *intervals[series.name])
    shown = [s.name for s in data.headline]
    timed = {name for s in data.headline for name in s.members or (s.name,)}  # brackets are of single series
    more = narrowing([r for r in rows if r["series"] in timed], steps, run.record.offered, suggest)
    manifests = run.manifests()
    effects = effects_of(data, options)
    told = [sentence(rows, pairs, shown, more), effects_clause(effects, shown)]
    return {
        "answer": ". ".join(filter(None, told)),
        "units": UNITS,
        "model": run.model,
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
        "suggested": more,
        "series": rows,
        "pairs": pairs,
        "heads": heads,
        "roles": _roles(data),
        "effects": effects,
    }


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
    for head, names in sorted(roles.items(), key=lambda item: _place(item[0])):
        value, null = math.nan, math.nan
        for name in (n for n in names if data.head_sums[n].spec.nulls):
            sums = data.head_sums[name]
            h = [label(*x) for x in sums.heads].index(head)
            value = float(data.value_HC(sums, False)[h, -1])
            null = value - float(data.excess_HC(sums, False)[h, -1])
            break
        layer, number = _place(head)
        row = {"head": head, "layer": layer, "number": number, "series": names}
        found.append(row | {"value": value, "null": null})
    return found


def _place(head: str) -> tuple[int, int]:
    """L3H5 -> (3, 5)."""
    layer, number = head[1:].split("H")
    return int(layer), int(number)


def narrowing(rows: Sequence[dict], steps: list[int], offered: Sequence[int], count: int) -> list[int]:
    """The offered checkpoints that narrow the rows' open brackets most; none where nothing emerged."""
    cells = [Cell(r["cell_lo_step"], r["cell_hi_step"], r["jump_share"]) for r in rows if r["emerged"]]
    return suggested(cells, offered, steps, count)


def _heads(data: Trajectories, options: EmergenceConfig) -> tuple[list[dict], dict[str, np.ndarray]]:
    """For every head series: which heads emerge, and by their null; the final top heads traced back; routing; controls.

    A head series' controls are the onsets, in octaves, of the other heads that emerge on the same score. Where a
    series has nulls, heads are chosen on one half of the documents (a rise of at least delta) and tested on the other.
    """
    x_C, rows, controls = octaves(data.steps), [], {}
    for series in (s for s in data.series if s.name in data.head_sums and s.heads_of is None):
        sums, mine = data.head_sums[series.name], data.chosen(series.name)
        if sums.spec.control is None:
            others = data.ranked(series.name)[len(mine) :]
            controls[series.name] = _onsets(data, sums, others, None, options).t50_H
            continue
        able = np.flatnonzero(data.supported(sums, half=True))
        chosen, found = _tested(data, sums, able, None, options)
        _, null = _tested(data, sums, able, sums.spec.control, options)
        emerged = [h for h, yes in zip(chosen, found.emerged_H, strict=True) if yes]
        controls[series.name] = np.array([t for h, t in zip(chosen, found.t50_H, strict=True) if h not in mine])
        rows.append(
            {
                "series": series.name,
                "n_heads": len(able),
                "n_chosen": len(chosen),
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
    data: Trajectories, sums: HeadSums, able: np.ndarray, null: str | None, options: EmergenceConfig
) -> tuple[list[int], HeadOnsets]:
    """The heads whose value, or null, rises on the choosing half, and their onsets on the other half."""
    x_C, value_HC, delta = octaves(data.steps), data.value_HC(sums, True, null), data.delta(sums.spec)
    chosen = [int(h) for h in able if _rise(x_C, value_HC[h], options.bandwidth_oct) >= delta]
    return chosen, _onsets(data, sums, chosen, null, options)


def _onsets(
    data: Trajectories, sums: HeadSums, heads: Sequence[int], null: str | None, options: EmergenceConfig
) -> HeadOnsets:
    """Onsets of heads on the half of the documents that they were not chosen on."""
    numerator_HDC, denominator_HDC = (sums.by_document_HDC(c, heads) for c in sums.columns(null))
    few_HC = denominator_HDC.sum(1) < (options.min_events if sums.spec.count else 1)
    numerator_HDC[np.broadcast_to(few_HC[:, None], numerator_HDC.shape)] = math.nan
    delta = data.delta(sums.spec)
    return head_onsets(octaves(data.steps), numerator_HDC, denominator_HDC, delta, options.bandwidth_oct, data.seed)


def _rise(x_C: np.ndarray, y_C: np.ndarray, bandwidth: float) -> float:
    """From base to top, in the score's unit; -inf where nothing rises."""
    seen = np.isfinite(y_C)
    if seen.sum() < FEWEST:
        return -math.inf
    onset = half_rise(x_C[seen], y_C[seen], bandwidth)
    return onset.rise if math.isfinite(onset.t50) else -math.inf


def _overlap(data: Trajectories, sums: HeadSums, k: int) -> dict:
    found = traced_back(data.value_HC(sums, True), data.value_HC(sums, False), k)
    return {
        "k": found.k,
        "final": [label(*sums.heads[h]) for h in found.final],
        "share": found.overlap_C.tolist(),
        "index": found.index_C.tolist(),
        "ceiling": found.ceiling,
        "chance": found.chance,
    }


def _routing(sums: HeadSums, heads: list[int], x_C: np.ndarray) -> dict:
    sum_HC, scored_HC = (sums.total_HC(column, False)[heads] for column in sums.columns())
    opportunities = float(sums.opportunities_D[~sums.chosen_on_D].sum())
    found = decomposed(sum_HC, scored_HC, opportunities, x_C <= x_C[0] + 1)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(found).items()}
