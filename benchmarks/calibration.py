"""Do the emergence statistics keep their promises? A test on simulated trajectories with known onsets.

    python benchmarks/calibration.py [--repeats 20] [--bootstrap 100] [--seed 0] [--only onsets lags flat ...]

Prints one table: every figure, its target, and what was reached. Every setting has its own seed, so that a part can be
repeated alone. With few repeats the worst of many settings is mostly luck. README.md says which repeats gave its
rows; 400 with --bootstrap 400 take a night.
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats
from simulator import GRIDS, KINDS, SHAPES, Setting, few_shot, simulated, true_onset

from sih.emergence.association import coincidence_p, residual_association, seed_association
from sih.emergence.gate import assess
from sih.emergence.heads import head_onsets
from sih.emergence.onset import half_rise, octaves
from sih.emergence.timing import analyse

CALIBRATED = (10, 23, 38, 154)  # grids
MIDDLES = (6.0, 13.0)  # octaves between which true onsets lie: steps 63 to 8,191
HEADS = 384
LAGS = (0.0, 0.5, 1.0, 2.0)
BANDWIDTH = 0.5
PAIRS = [("sigmoid", "sigmoid"), ("step", "step"), ("gompertz", "sigmoid"), ("transient", "sigmoid"), ("step", "drift")]


FLAT: dict[str, Callable[[Setting], bool]] = {
    "false onset on flat series, mean / worst": lambda s: s.fall == 1 and s.autocorrelation < 0.9,
    "  autocorrelation .9": lambda s: s.autocorrelation == 0.9,
    "  jitter falls to a quarter": lambda s: s.fall > 1,
}  # fmt: skip


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


def flat(work: Work) -> dict[str, float]:
    """How often a series that does not rise is reported to rise."""
    (setting,) = work.settings
    x_C = octaves(np.array(GRIDS[setting.grid]))
    found = 0
    for r in range(work.repeats):
        rng = work.rng(r)
        t = simulated(setting, 0.0, rng)
        assessed = assess(x_C, t.numerator_DC, t.denominator_DC, 1, t.delta, BANDWIDTH, rng)
        found += assessed is not None and assessed.rises
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
        t = few_shot(setting.documents, setting.autocorrelation, rng)
        assessed = assess(x_C, t.numerator_DC, t.denominator_DC, 1, t.delta, BANDWIDTH, rng)
        found += assessed is not None and assessed.rises
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


PARTS: dict[str, Callable[[Work], dict[str, float]]] = {
    f.__name__: f for f in (onsets, lags, flat, power, association, seeds, discovery)
}  # fmt: skip


def works(repeats: int, bootstrap: int, seed: int, only: Sequence[str]) -> list[Work]:
    rising = [Setting(shape, grid, kind) for shape in SHAPES for grid in CALIBRATED for kind in KINDS]
    found = [Work("onsets", (s,), repeats, bootstrap, seed) for s in rising]
    for grid, (heads, icl), kinds, lag in itertools.product(CALIBRATED, PAIRS, [KINDS[2:0:-1], ("mean", "mean")], LAGS):
        two = Setting(heads, grid, kinds[0]), Setting(icl, grid, kinds[1])
        found.append(Work("lags", two, repeats, bootstrap, seed, lag))
    for grid, kind, phi, size in itertools.product(CALIBRATED, KINDS, (0.0, 0.5, 0.8, 0.9), (0.04, 0.1)):
        found.append(Work("flat", (Setting("flat", grid, kind, 0.3, size, phi),), 5 * repeats, 0, seed))
    for grid, kind in itertools.product(CALIBRATED, KINDS):
        found.append(Work("flat", (Setting("flat", grid, kind, 0.3, 0.1, 0.5, fall=4),), 5 * repeats, 0, seed))
    for prompts, phi in itertools.product((50, 150, 600), (0.5, 0.8)):
        found.append(Work("power", (Setting("step", 68, "binomial", documents=prompts, autocorrelation=phi),),
                          5 * repeats, 0, seed))  # fmt: skip
    for grid, shape in itertools.product((23, 38, 154), ("sigmoid", "gompertz")):
        found.append(Work("association", (Setting(shape, grid, "mean"),), 5 * repeats, 0, seed))
    for runs, sizes in ((4, 1), (6, 1), (9, 1), (4, 3), (9, 3)):
        found.append(Work("seeds", (Setting("flat", runs, "mean"),), 5 * repeats, 0, seed, sizes))
    for grid, true, phi in itertools.product((38, 154), (0, 1, 5, 20), (0.5, 0.8)):
        setting = Setting("sigmoid", grid, "ratio", 0.3, 0.04, phi)
        found.append(Work("discovery", (setting,), max(1, repeats // 2), 0, seed, true))
    for grid in (38, 154):
        hard = Setting("sigmoid", grid, "ratio", 0.3, 0.1, 0.8)
        found.append(Work("discovery", (hard,), max(1, repeats // 2), 0, seed, 0))
    return [w for w in found if w.kind in only]


def done(work: Work) -> tuple[Work, dict[str, float]]:
    return work, PARTS[work.kind](work)


def summary(results: list[tuple[Work, dict[str, float]]]) -> list[tuple[str, str, str]]:
    """Rows of the table: figure, target, reached."""

    def of(kind: str, name: str, **wanted: float) -> np.ndarray:
        return np.array(
            [r[name] for w, r in results if w.kind == kind and all(getattr(w, k) == v for k, v in wanted.items())]
        )

    rows = []
    if (mse := of("onsets", "mse")).size:
        rows.append(("T50 RMSE, octaves", "<= .30", f"{np.sqrt(np.nanmean(mse)):.2f}"))
        for name, target in (("coverage", ">= .95 / >= .90"), ("documents", "(.79 expected)"), ("emerged", "")):
            label = {"coverage": "jump interval coverage", "documents": "documents alone", "emerged": "rises found"}[
                name
            ]
            value = of("onsets", name)
            rows.append((f"{label}, mean / worst", target, f"{np.nanmean(value):.3f} / {np.nanmin(value):.3f}"))
    if (covered := of("lags", "coverage")).size:
        rows.append(
            (
                "lag interval coverage, mean / worst",
                ">= .95 / >= .92",
                f"{np.nanmean(covered):.3f} / {np.nanmin(covered):.3f}",
            )
        )
        false = of("lags", "heads_lead", lag=0.0) + of("lags", "icl_leads", lag=0.0)
        rows.append(
            ("false lead at zero lag, mean / worst", "<= .01 / <= .05", f"{false.mean():.3f} / {false.max():.3f}")
        )
        power = [of("lags", "heads_lead", lag=lag).mean() for lag in LAGS[1:]]
        rows.append(("power at 1 / 2 octaves", ">= .85 / >= .98", f"{power[1]:.3f} / {power[2]:.3f}"))
        fine = [
            np.mean(
                [r["heads_lead"] for w, r in results if (w.kind, w.lag) == ("lags", lag) and w.settings[0].grid > 10]
            )
            for lag in LAGS[2:]
        ]
        rows.append(("  the same without the grid of 10", "", f"{fine[0]:.3f} / {fine[1]:.3f}"))
        for lag in LAGS[1:]:
            by_grid = [
                np.mean(
                    [
                        r["heads_lead"]
                        for w, r in results
                        if w.kind == "lags" and w.lag == lag and w.settings[0].grid == g
                    ]
                )
                for g in CALIBRATED
            ]
            rows.append(
                (f"  at {lag:g}, grids {' / '.join(map(str, CALIBRATED))}", "", " / ".join(f"{p:.2f}" for p in by_grid))
            )
        wrong = np.array([r["icl_leads"] for w, r in results if w.kind == "lags" and w.lag > 0])
        rows.append(("wrong lead at a true lag, worst", "", f"{wrong.max():.3f}"))
    if of("flat", "false").size:
        for label, wanted in FLAT.items():
            false = np.array([r["false"] for w, r in results if w.kind == "flat" and wanted(w.settings[0])])
            target = "<= .02 / <= .08" if label.startswith("false") else ""
            rows.append((label, target, f"{false.mean():.3f} / {false.max():.3f}"))
    for prompts, target in ((50, ".95"), (150, ".99"), (600, ".99")):
        at = [r["found"] for w, r in results if w.kind == "power" and w.settings[0].documents == prompts]
        if at:
            rows.append((f"few-shot rise found, {prompts} prompts, mean / worst", f">= {target}",
                         f"{np.mean(at):.3f} / {min(at):.3f}"))  # fmt: skip
    if (c := of("association", "coincidence")).size:
        r = of("association", "residual")
        rows.append(
            ("false association: coincidence / residual", "<= .06 / <= .07", f"{c.mean():.3f} / {r.mean():.3f}")
        )
        rows.append(("  worst", "", f"{c.max():.3f} / {r.max():.3f}"))
    if (false := of("seeds", "false")).size:
        rows.append(("seed permutation, mean / worst", "<= .06", f"{false.mean():.3f} / {false.max():.3f}"))
        rows.append(("  sizes simply pooled (negative control)", "", f"{of('seeds', 'pooled').max():.2f}"))
    if (false := of("discovery", "false")).size:
        rows.append((f"false discovery rate of {HEADS} heads, mean / worst", "<= .05",
                     f"{false.mean():.3f} / {false.max():.3f}"))  # fmt: skip
        of_none = [[r["any"] for w, r in results if w.kind == "discovery" and w.lag == 0 and w.settings[0].jitter == j]
                   for j in (0.04, 0.1)]  # fmt: skip
        rows.append(("  any of 384 flat heads emerges, worst; with large jitter", "<= .05",
                     " / ".join(f"{max(a):.3f}" for a in of_none)))  # fmt: skip
        for true in (1, 5, 20):
            found = [np.mean([r["found"] for w, r in results if (w.kind, w.lag) == ("discovery", true)
                              and w.settings[0].grid == g]) for g in (38, 154)]  # fmt: skip
            rows.append((f"  {true} rising found, grids 38 / 154", ">= .9" if true == 1 else "",
                         f"{found[0]:.2f} / {found[1]:.2f}"))  # fmt: skip

    if (levels := of("association", "levels")).size:
        rows.append(("negative control: Pearson on levels", ">= .95", f"{levels.mean():.2f}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="simulated runs in each setting")
    parser.add_argument("--bootstrap", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--settings", action="store_true", help="print every setting too")
    args = parser.parse_args()
    todo = works(args.repeats, args.bootstrap, args.seed, args.only)
    started = time.perf_counter()
    console = Console()
    with multiprocessing.get_context("spawn").Pool() as pool, console.status("simulating") as status:
        results = []
        for result in pool.imap_unordered(done, todo):
            results.append(result)
            status.update(f"simulating: {len(results)} of {len(todo)} settings")
    if args.settings:
        for work, found in sorted(results, key=lambda r: repr(r[0])):
            names = " ".join(f"{s.shape}/{s.kind}/{s.grid}/{s.autocorrelation}/{s.jitter}/{s.documents}/{s.fall}"
                             for s in work.settings)  # fmt: skip
            console.print(work.kind, work.lag, names, {k: round(v, 3) for k, v in found.items()}, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("figure", "target", "reached"):
        table.add_column(column)
    for row in summary(results):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"{len(todo)} settings, {args.repeats} repeats, B = {args.bootstrap}, seed {args.seed}: "
        f"{time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
