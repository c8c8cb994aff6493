"""What the calibration simulates, part by part: each pushes simulated series through the functions that are used."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats
from simulator import GRIDS, Setting, few_shot, simulated, true_onset
from whole_runs import HEADS as SHAPE
from whole_runs import Truth, written

from sih.config import EmergenceConfig
from sih.emergence.association import coincidence_p, residual_association, seed_association
from sih.emergence.gate import assess
from sih.emergence.heads import head_onsets
from sih.emergence.of_run import decisions
from sih.emergence.onset import half_rise, octaves
from sih.emergence.over_runs import over_seeds, over_sizes
from sih.emergence.timing import analyse
from sih.results.run import Run
from sih.results.trajectories import Trajectories
from sih.results.trajectory import Trajectory

CALIBRATED = (10, 23, 38, 154)  # grids
MIDDLES = (6.0, 13.0)  # octaves between which true onsets lie: steps 63 to 8,191
HEADS = SHAPE[0] * SHAPE[1]
LAGS = (0.0, 0.5, 1.0, 2.0)
BANDWIDTH = 0.5
PAIRS = [("sigmoid", "sigmoid"), ("step", "step"), ("gompertz", "sigmoid"), ("transient", "sigmoid"), ("step", "drift")]


@dataclass(frozen=True)
class Work:
    """One setting's part of the calibration; `kind` names the function that does it."""

    kind: str
    settings: tuple[Setting, ...]
    repeats: int
    bootstrap: int
    seed: int
    lag: float = 0.0

    def rng(self, repeat: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, repeat, *repr((self.kind, self.settings, self.lag)).encode()])


def onsets(work: Work) -> dict[str, float]:
    """Error and coverage of T50 for one rising series."""
    (setting,) = work.settings
    errors, covered, by_documents, emerged = [], [], [], 0
    for r in range(work.repeats):
        rng = work.rng(r)
        middle = rng.uniform(*MIDDLES)
        truth = true_onset(setting, middle)
        ((row,), _) = analyse(GRIDS[setting.grid], [simulated(setting, middle, rng)], BANDWIDTH, work.bootstrap, r)
        if row["emerged"]:
            emerged += 1
            errors.append(row["t50_log2"] - truth)
            covered.append(row["ci_jump_lo_log2"] <= truth <= row["ci_jump_hi_log2"])
            by_documents.append(row["ci_doc_lo_log2"] <= truth <= row["ci_doc_hi_log2"])
    return {
        "mse": float(np.mean(np.square(errors))), "bias": float(np.mean(errors)), "coverage": float(np.mean(covered)),
        "documents": float(np.mean(by_documents)), "emerged": emerged / work.repeats,
    }  # fmt: skip


def aligned(setting: Setting, wanted: float) -> float:
    """The middle at which the setting's true onset is `wanted` octaves."""
    middle = wanted
    for _ in range(4):
        middle += wanted - true_onset(setting, middle)
    return middle


def lags(work: Work) -> dict[str, float]:
    """A head series and an ICL series whose true onsets are `lag` octaves apart."""
    of_heads, of_icl = work.settings
    covered, heads_lead, icl_leads, decided = [], 0, 0, 0
    for r in range(work.repeats):
        rng = work.rng(r)
        first = rng.uniform(MIDDLES[0], MIDDLES[1] - work.lag)
        middles = [aligned(of_heads, first), aligned(of_icl, first + work.lag)]
        truth = true_onset(of_icl, middles[1]) - true_onset(of_heads, middles[0])
        heads = simulated(of_heads, middles[0], rng, "heads", "heads")
        icl = simulated(of_icl, middles[1], rng, "icl", "icl")
        _, (pair,) = analyse(GRIDS[of_heads.grid], [heads, icl], BANDWIDTH, work.bootstrap, r)
        if pair["lag_oct"] is None:
            continue
        decided += 1
        covered.append(pair["ci_jump_lo"] <= truth <= pair["ci_jump_hi"])
        heads_lead += pair["decision"] == "heads_lead"
        icl_leads += pair["decision"] == "icl_leads"
    return {
        "coverage": float(np.mean(covered)), "heads_lead": heads_lead / work.repeats,
        "icl_leads": icl_leads / work.repeats, "emerged": decided / work.repeats,
    }  # fmt: skip


def _rises(x_C: np.ndarray, series: Trajectory, rng: np.random.Generator) -> bool:
    found = assess(x_C, series.numerator_DC, series.denominator_DC, 1, series.delta, BANDWIDTH, rng)
    return found is not None and found.rises


def flat(work: Work) -> dict[str, float]:
    """How often a series that does not rise is reported to rise."""
    (setting,) = work.settings
    x_C = octaves(np.array(GRIDS[setting.grid]))
    found = 0
    for r in range(work.repeats):
        rng = work.rng(r)
        found += _rises(x_C, simulated(setting, 0.0, rng), rng)
    return {"false": found / work.repeats}


def association(work: Work) -> dict[str, float]:
    """Unrelated rising curves: coincidence with 99 controls, residuals, and Pearson on levels."""
    (setting,) = work.settings
    x_C = octaves(np.array(GRIDS[setting.grid]))
    hits = dict.fromkeys(("coincidence", "residual", "levels"), 0)
    for r in range(work.repeats):
        rng = work.rng(r)
        curves = [simulated(setting, rng.uniform(*MIDDLES), rng).value_C for _ in range(101)]
        times = [half_rise(x_C, y_C, BANDWIDTH).t50 for y_C in curves]
        hits["coincidence"] += coincidence_p(times[0], times[1], times[2:]) <= 0.05
        hits["residual"] += residual_association(x_C, curves[0], curves[1], BANDWIDTH, r)[1] <= 0.05
        hits["levels"] += stats.pearsonr(curves[0], curves[1]).pvalue <= 0.05
    return {name: count / work.repeats for name, count in hits.items()}


def seeds(work: Work) -> dict[str, float]:
    """Onsets over seeds that are unrelated, though both depend on the model's size."""
    runs, sizes = int(work.settings[0].grid), int(work.lag)
    names = [f"size {s}" for s in range(sizes) for _ in range(runs)]
    hits = pooled = 0
    for r in range(work.repeats):
        rng = work.rng(r)
        of_size = np.repeat(np.arange(sizes) * 1.5, runs)
        h, i = (of_size + rng.normal(0, 0.4, len(names)) for _ in range(2))
        hits += seed_association(h, i, names, r)[1] <= 0.05
        pooled += stats.pearsonr(h, i).pvalue <= 0.05
    return {"false": hits / work.repeats, "pooled": pooled / work.repeats}


def power(work: Work) -> dict[str, float]:
    """A few-shot accuracy of few prompts that goes from chance to .75 between two checkpoints."""
    (setting,) = work.settings
    x_C = octaves(np.array(GRIDS[setting.grid]))
    found = 0
    for r in range(work.repeats):
        rng = work.rng(r)
        found += _rises(x_C, few_shot(setting.documents, setting.autocorrelation, rng), rng)
    return {"found": found / work.repeats}


def discovery(work: Work) -> dict[str, float]:
    """384 heads, of which `lag` rise: the share of false ones among those reported to rise, and whether any is."""
    (setting,), true = work.settings, int(work.lag)
    x_C = octaves(np.array(GRIDS[setting.grid]))
    false_share, any_false, found = [], 0, []
    for r in range(work.repeats):
        rng = work.rng(r)
        flat_one = replace(setting, shape="flat")
        heads = [simulated(setting if h < true else flat_one, rng.uniform(*MIDDLES), rng) for h in range(HEADS)]
        sums = [np.stack([getattr(t, part) for t in heads]) for part in ("numerator_DC", "denominator_DC")]
        emerged = head_onsets(x_C, sums[0], sums[1], 0.05, BANDWIDTH, r).emerged_H
        false_share.append(emerged[true:].sum() / max(1, emerged.sum()))
        any_false += emerged[true:].any()
        found.append(emerged[:true].mean() if true else np.nan)
    return {
        "false": float(np.mean(false_share)), "any": any_false / work.repeats, "found": float(np.mean(found)),
    }  # fmt: skip


def runs(work: Work) -> dict[str, float]:
    """Whole runs of 384 heads, from their tables to every decision; see `RUNS` for the kinds."""
    (setting,), kind = work.settings, RUNS[int(work.lag)]
    told: dict[str, list[float]] = {}
    for r in range(work.repeats):
        rng = work.rng(r)
        truth = _truth(kind, setting, rng)
        options = EmergenceConfig(work.bootstrap, BANDWIDTH, top_heads=0.1, few_heads=3, min_events=20)
        with tempfile.TemporaryDirectory() as scratch:
            data = Trajectories(Run.open(written(Path(scratch) / "run", truth, rng).root), options)
            rows, pairs, heads = decisions(data, options)
        for name, value in _reached(truth, kind, rows, pairs, heads).items():
            told.setdefault(name, []).append(value)
    return {name: float(np.nanmean(values)) for name, values in told.items() if np.isfinite(values).any()}


def _truth(kind: "Kind", setting: Setting, rng: np.random.Generator) -> Truth:
    times_H = np.full(HEADS, np.nan)
    icl_time = rng.uniform(*MIDDLES) if kind.icl_rises else np.nan
    rising = rng.permutation(HEADS)[: kind.rising]
    common = icl_time if kind.icl_rises and not kind.unrelated else rng.uniform(*MIDDLES)
    times_H[rising] = rng.uniform(*MIDDLES, kind.rising) if kind.unrelated else common
    return Truth(
        setting.grid, times_H, icl_time, setting.jitter, setting.autocorrelation, setting.fall, kind.null_rises
    )


def _reached(truth: Truth, kind: "Kind", rows: list[dict], pairs: list[dict], heads: list[dict]) -> dict[str, float]:
    """What one run's decisions come to; NaN where there is nothing to decide."""
    emerged = {row["series"]: row["emerged"] for row in rows if row["series"] in HEADLINE}
    flat = [not kind.icl_rises if name in ("gain", "accuracy") else not kind.rising for name in HEADLINE]
    flat[0] |= truth.null_rises  # an index equal to its nulls
    told = [p for p in pairs if {p["heads"], p["icl"]} <= {*HEADLINE}]
    found = {"any": float(any(emerged[n] for n, is_flat in zip(HEADLINE, flat, strict=True) if is_flat)),
             "index": float(emerged["index"]), "matching": float(emerged["matching"])}  # fmt: skip
    if kind.icl_rises and not kind.unrelated:
        found["lead"] = float(any(p["decision"] != "unresolved" for p in told))  # the true lag is 0
    if kind.unrelated:
        for name in ("p_coincidence", "p_residual"):
            given = [p[name] <= 0.05 for p in pairs if np.isfinite(p[name])]
            found[name] = float(np.mean(given)) if given else np.nan
    (index,) = heads
    true = {f"L{h // SHAPE[1]}H{h % SHAPE[1]}" for h in np.flatnonzero(np.isfinite(truth.head_times_H))}
    true = set() if truth.null_rises else true
    right = len(true & {*index["emerged"]})
    found["false"] = (index["n_emerged"] - right) / max(1, index["n_emerged"])
    found["any head"] = float(index["n_emerged"] > right)
    if true:
        found["found"] = right / len(true)
    return found


@dataclass(frozen=True)
class Kind:
    """A kind of whole run. unrelated: every head and in-context learning rise at times of their own."""

    name: str
    rising: int
    icl_rises: bool
    null_rises: bool = False
    unrelated: bool = False


RUNS = (
    Kind("nothing rises", 0, False),
    Kind("index equal to its rising nulls", 60, True, null_rises=True),
    Kind("1 head rises", 1, True),
    Kind("5 heads rise", 5, True),
    Kind("20 heads rise", 20, True),
    Kind("60 heads rise, each when it likes", 60, True, unrelated=True),
)
HEADLINE = ("index", "matching", "gain", "accuracy")


def families(work: Work) -> dict[str, float]:
    """Six models of six seeds each, through `analyse`: the mean over seeds, lags over seeds, the slope over sizes."""
    (setting,), seeds, sizes = work.settings, 6, 6
    covered, sloped, leads = [], [], 0
    for r in range(work.repeats):
        rng = work.rng(r)
        slope = rng.uniform(-0.5, 0.5)
        of_model = 10 + slope * np.arange(sizes) + rng.normal(0, 0.2, sizes)
        found = np.empty((3, sizes, seeds))
        lag = np.empty((3, seeds))
        for m, s in np.ndindex(sizes, seeds):
            middle = of_model[m] + rng.normal(0, 0.3)
            heads = simulated(setting, middle, rng, "heads", "heads")
            series = [heads, simulated(setting, middle + rng.normal(0, 0.2), rng, "icl", "icl")] if m == 0 else [heads]
            rows, pairs = analyse(GRIDS[setting.grid], series, BANDWIDTH, work.bootstrap, r)
            found[:, m, s] = [rows[0].get(k, np.nan) for k in ("t50_log2", "ci_jump_lo_log2", "ci_jump_hi_log2")]
            if m == 0:
                lag[:, s] = [_number(pairs[0].get(k)) for k in ("lag_oct", "ci_jump_lo", "ci_jump_hi")]
        shift = true_onset(setting, 10.0) - 10.0
        mean = over_seeds(*found[:, 0])
        covered.append(mean.low <= of_model[0] + shift <= mean.high)
        of_lag = over_seeds(*lag)
        leads += not of_lag.low <= 0 <= of_lag.high
        line = over_sizes(np.arange(sizes, dtype=float), np.nanmean(found[0], axis=1))
        sloped.append(line.low <= slope <= line.high)
    return {"mean": float(np.mean(covered)), "slope": float(np.mean(sloped)), "lead": leads / work.repeats}


def _number(value: float | None) -> float:
    return np.nan if value is None else value


PARTS: dict[str, Callable[[Work], dict[str, float]]] = {
    f.__name__: f for f in (onsets, lags, flat, power, association, seeds, discovery, runs, families)
}  # fmt: skip
