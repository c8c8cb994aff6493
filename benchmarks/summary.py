"""The calibration's table: figure, target, reached."""

from collections.abc import Callable

import numpy as np
from parts import CALIBRATED, HEADS, LAGS, RUNS, Work
from simulator import Setting

FLAT: dict[str, Callable[[Setting], bool]] = {
    "false onset on flat series, mean / worst": lambda s: s.fall == 1 and s.autocorrelation < 0.9,
    "  autocorrelation .9": lambda s: s.autocorrelation == 0.9,
    "  jitter falls to a quarter": lambda s: s.fall > 1,
}  # fmt: skip


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
    rows += _of_runs(results)
    for name, label, target in (
        ("mean", "interval of the mean over six seeds covers it, worst", ">= .93"),
        ("lead", "false lead over six seeds, worst", "<= .05"),
        ("slope", "interval of the slope over six sizes covers it, worst", ">= .93"),
    ):
        if (value := of("families", name)).size:
            rows.append((label, target, f"{value.max() if name == 'lead' else value.min():.3f}"))
    if (levels := of("association", "levels")).size:
        rows.append(("negative control: Pearson on levels", ">= .95", f"{levels.mean():.2f}"))
    return rows


def _of_runs(results: list[tuple[Work, dict[str, float]]]) -> list[tuple[str, str, str]]:
    """Whole runs, by kind: mean over its settings, and the worst."""
    rows = []
    for number, kind in enumerate(RUNS):
        mine = [r for w, r in results if w.kind == "runs" and w.lag == number]
        if not mine:
            continue

        def reached(name: str, low: bool = False, mine: list[dict[str, float]] = mine) -> str:
            values = [r[name] for r in mine if name in r]
            return f"{np.mean(values):.3f} / {min(values) if low else max(values):.3f}" if values else "-"

        rows.append((f"whole runs, {kind.name}: mean / worst", "", ""))
        rows.append(("  any flat headline series has an onset", "<= .05", reached("any")))
        if kind.null_rises:
            rows.append(("  the index has an onset", "<= .05", reached("index")))
        if kind.icl_rises and not kind.unrelated:
            rows.append(("  any headline lead at zero lag", "<= .05", reached("lead")))
        if kind.unrelated:
            rows.append(("  p_coincidence <= .05", "<= .06", reached("p_coincidence")))
            rows.append(("  p_residual <= .05", "<= .06", reached("p_residual")))
        if kind.rising and not kind.null_rises:
            rows.append(("  rising heads found", ">= .9" if kind.rising == 1 else "", reached("found", low=True)))
            rows.append(("  false share of the heads that emerge", "<= .05", reached("false")))
        else:
            rows.append(("  any head emerges", "<= .05", reached("any head")))
    return rows
