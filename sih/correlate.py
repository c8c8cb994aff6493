"""Onsets, lags and associations: of a sweep in the store, of several, or of anyone's trajectories.

python -m sih.correlate model=pythia-70m                 a sweep
python -m sih.correlate models=[pythia-70m,pythia-160m] model_seeds=all
python -m sih.correlate heads=a.csv icl=b.csv            trajectories from elsewhere
"""

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console

from sih.analysis import lags, onsets, seeds
from sih.answer import sentence, show, show_across
from sih.checkpoints.schedule import PYTHIA_STEPS
from sih.command import command
from sih.config import Config, check, model_name
from sih.emergence.across import across
from sih.emergence.gate import FEWEST
from sih.emergence.heads import HeadOnsets, head_onsets, traced_back
from sih.emergence.onset import half_rise, octaves
from sih.emergence.routing import decomposed
from sih.emergence.suggest import Cell, suggested
from sih.emergence.table import read_trajectories
from sih.emergence.timing import Trajectory, analyse
from sih.errors import SihError
from sih.results import find, locate
from sih.store import Store, csv_text
from sih.trajectories import RelationSums, Series, Trajectories, label

UNITS = {
    "time": "octaves, log2(step + 1); columns ending in _step are optimiser steps",
    "lag_oct": "T50(ICL) - T50(heads), octaves; positive: heads lead",
    "intervals": "doc (documents resampled), jump (widened by the jump share), bracket (cell ends); "
    "95 % of onsets, 98 % of lags",
}


def correlate(store: Store, config: Config) -> tuple[Trajectories, dict]:
    """Analyse a store and write emergence.json, emergence.csv and emergence_pairs.csv into it.

    Raises:
        SihError: nothing measured yet, or the folder cannot be written.
    """
    data = Trajectories(store, config.emergence, config.icl.loss.headline, config.seed)
    heads, controls = _heads(data, config)
    rows, pairs = analyse(
        [int(s) for s in data.steps],
        [_trajectory(s, config.emergence.delta) for s in data.series],
        config.emergence.bandwidth_oct,
        config.emergence.bootstrap,
        config.seed,
        controls,
    )
    for row, series in zip(rows, data.series, strict=True):
        row["heads"] = list(series.heads)
        row["chance"] = series.chance
    shown = [s.name for s in data.headline]
    steps = [int(s) for s in data.steps]
    offered = PYTHIA_STEPS if config.model.source == "hub" else config.model.train.steps if config.model.train else []
    more = _suggested([r for r in rows if r["series"] in shown], steps, offered, config.suggest)
    result = {
        "answer": sentence(rows, pairs, shown, more),
        "units": UNITS,
        "seed": config.seed,
        "bootstrap": config.emergence.bootstrap,
        "steps": steps,
        "failed_steps": {str(k): v for k, v in store.failed().items()},
        "equal_weights": store.equal_weights(),
        "suspect_steps": store.suspect(),
        "headline": shown,
        "left_out": data.left_out,
        "suggested": more,
        "series": rows,
        "pairs": pairs,
        "heads": heads,
    }
    for name, text in _texts(result).items():
        store.write_text(name, text)
    return data, result


def _texts(result: dict) -> dict[str, str]:
    """The files of a result, by name."""
    found = {"emergence.json": json.dumps(_finite(result), indent=2) + "\n"}
    for name, rows in (("emergence.csv", result["series"]), ("emergence_pairs.csv", result["pairs"])):
        fields = list(dict.fromkeys(key for row in rows for key in row))
        found[name] = csv_text(fields, [[_cell(row.get(key)) for key in fields] for row in rows])
    return found


def _suggested(rows: Sequence[dict], steps: list[int], offered: Sequence[int], count: int) -> list[int]:
    """The offered checkpoints that narrow the headline's open brackets most; none where nothing emerged."""
    cells = [Cell(r["cell_lo_step"], r["cell_hi_step"], r["jump_share"]) for r in rows if r["emerged"]]
    return suggested(cells, offered, steps, count)


def _heads(data: Trajectories, config: Config) -> tuple[list[dict], dict[str, np.ndarray]]:
    """For every relation series: which heads emerge beside their null, old tops, routing; and control onsets.

    Heads are chosen on one half of the documents (a rise of at least delta) and tested on the other. Controls of
    a head series are the other heads that emerge on the same score, in octaves.
    """
    options, x_C = config.emergence, octaves(data.steps)
    rows, controls = [], {}
    for name, sums in data.relations.items():
        series = next((s for s in data.series if s.name == name), None)
        if series is None:
            continue
        able = np.flatnonzero(data.supported(sums, half=True))
        chosen, found = _tested(data, sums, able, "argmax", config)
        _, null = _tested(data, sums, able, "null_random", config)
        emerged = [h for h, yes in zip(chosen, found.emerged_H, strict=True) if yes]
        mine = [h for h, head in enumerate(sums.heads) if label(*head) in series.heads]
        controls[name] = np.array([t for h, t in zip(chosen, found.t50_H, strict=True) if h not in mine])
        rows.append(
            {
                "series": name,
                "n_heads": len(able),
                "n_chosen": len(chosen),
                "n_emerged": len(emerged),
                "n_control_emerged": int(null.emerged_H.sum()),
                "emerged": [label(*sums.heads[h]) for h in emerged],
                "t50_step": [float(2**t - 1) for t in found.t50_H[found.emerged_H]],
                "q_bh": [float(q) for q in found.q_H[found.emerged_H]],
                "overlap": _overlap(data, sums, len(series.heads)),
                "routing": _routing(sums, mine, x_C),
            }
        )
    controls["prefix_matching"] = _prefix_controls(data, options.delta["prefix_matching"], config)
    return rows, controls


def _tested(
    data: Trajectories, sums: RelationSums, able: np.ndarray, name: str, config: Config
) -> tuple[list[int], HeadOnsets]:
    """The heads that rise on the choosing half, and their onsets on the other half."""
    options, x_C = config.emergence, octaves(data.steps)
    index_HC = data.index_HC(sums, True, name)
    chosen = [int(h) for h in able if _rise(x_C, index_HC[h], options.bandwidth_oct) >= options.delta["relation_index"]]
    numerator_HDC, denominator_HDC = (
        sums.by_document_HDC(f"{name}_{part}", chosen, False) for part in ("sum", "scored")
    )
    few_HC = denominator_HDC.sum(1) < options.min_events
    numerator_HDC[np.broadcast_to(few_HC[:, None], numerator_HDC.shape)] = math.nan
    return chosen, head_onsets(
        x_C, numerator_HDC, denominator_HDC, options.delta["relation_index"], options.bandwidth_oct, config.seed
    )


def _rise(x_C: np.ndarray, y_C: np.ndarray, bandwidth: float) -> float:
    """From base to top, in the score's unit; -inf where nothing rises."""
    seen = np.isfinite(y_C)
    if seen.sum() < FEWEST:
        return -math.inf
    onset = half_rise(x_C[seen], y_C[seen], bandwidth)
    return onset.rise if math.isfinite(onset.t50) else -math.inf


def _prefix_controls(data: Trajectories, delta: float, config: Config) -> np.ndarray:
    """Onsets of the prefix matching of every head that the series does not average."""
    values_HDC = data.prefix_matching_of_others()
    if not values_HDC.size:
        return np.empty(0)
    ones = np.ones_like(values_HDC)
    return head_onsets(octaves(data.steps), values_HDC, ones, delta, config.emergence.bandwidth_oct, config.seed).t50_H


def _overlap(data: Trajectories, sums: RelationSums, k: int) -> dict:
    found = traced_back(data.index_HC(sums, True), data.index_HC(sums, False), k)
    return {
        "k": found.k,
        "final": [label(*sums.heads[h]) for h in found.final],
        "share": found.overlap_C.tolist(),
        "index": found.index_C.tolist(),
        "ceiling": found.ceiling,
        "chance": found.chance,
    }


def _routing(sums: RelationSums, heads: list[int], x_C: np.ndarray) -> dict:
    sum_HC, scored_HC = (sums.total_HC(f"argmax_{part}", False)[heads] for part in ("sum", "scored"))
    opportunities = float(sums.opportunities_D[~sums.chosen_on_D].sum())
    found = decomposed(sum_HC, scored_HC, opportunities, x_C <= x_C[0] + 1)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(found).items()}


def _trajectory(series: Series, delta: dict[str, float]) -> Trajectory:
    return Trajectory(
        series.name,
        series.kind,
        series.pool,
        series.documents,
        series.numerator_DC,
        series.denominator_DC,
        series.sign,
        delta[series.score],
        series.floor_C,
    )


def _finite(value):
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value


def run_store(config: Config, console: Console) -> None:
    """Relate what the store holds and print the table."""
    store = find(config)
    _, result = correlate(store, config)
    console.print(f"Written: {store.root}/emergence.json, emergence.csv, emergence_pairs.csv", soft_wrap=True)
    show(result, console)


def run_tables(config: Config, console: Console) -> None:
    """The same statistics on trajectories that others measured."""
    files = [(kind, getattr(config.own, kind)) for kind in ("heads", "icl")]
    if missing := [kind for kind, file in files if not file]:
        raise SihError(f"{missing[0]}= is missing; expected two tables, heads=a.csv icl=b.csv")
    steps, trajectories, notes = read_trajectories([(kind, Path(file)) for kind, file in files])
    options = config.emergence
    rows, pairs = analyse(steps, trajectories, options.bandwidth_oct, options.bootstrap, config.seed)
    shown = [row["series"] for row in rows]
    more = _suggested(rows, steps, PYTHIA_STEPS, config.suggest)
    result = {
        "answer": sentence(rows, pairs, shown, more), "units": UNITS, "seed": config.seed,
        "bootstrap": options.bootstrap, "steps": steps, "resampling": notes, "headline": shown, "left_out": [],
        "equal_weights": [], "suspect_steps": {}, "suggested": more, "series": rows, "pairs": pairs, "heads": [],
    }  # fmt: skip
    folder = Store(Path(config.output) / "tables" / "-".join(Path(file).stem for _, file in files))
    for name, text in _texts(result).items():
        folder.write_text(name, text)
    if config.figures:
        for module in (onsets, lags):
            module.draw(result, folder.root, folder.root.name)
    for series, note in notes.items():
        if note != "documents":
            console.print(f"{series}: {note}", style="dim", highlight=False)
    console.print(f"Written: {folder.root}/emergence.json, emergence.csv, emergence_pairs.csv", soft_wrap=True)
    show(result, console)


def run_several(config: Config, overrides: Sequence[str], console: Console) -> None:
    """Every model and seed that is in the store, each by itself and then together."""
    kept = [o for o in overrides if not re.match(r"\+*(models|model_seeds|model|model\.seed)=", o)]
    runs, gone = [], []
    for model in config.models or [""]:
        named = [f"model={model}"] if model else [o for o in overrides if o.startswith("model=")]
        one = _composed([*kept, *named])
        wanted = config.model_seeds if config.model_seeds is not None else [one.model.seed]
        for seed in (one.model.seeds or [one.model.seed]) if wanted == "all" else wanted:
            chosen = _composed([*kept, *named, f"model.seed={seed}"])
            store = locate(chosen).store
            if not store.steps():
                gone.append(model_name(chosen.model))
                continue
            _, result = correlate(store, chosen)
            runs.append((model_name(one.model), int(seed), result))
            console.print(f"{model_name(chosen.model)}: {result['answer']}", highlight=False)
    if not runs:
        raise SihError(f"nothing measured yet of {', '.join(gone)}; run python -m sih.sweep for each first")
    rows, pairs = across(runs, config.seed)
    result = {"units": UNITS, "seed": config.seed, "not_measured": gone, "series": rows, "pairs": pairs}
    folder = Store(Path(config.output) / "across" / "-".join(dict.fromkeys(model for model, _, _ in runs)))
    for name, text in _texts(result).items():
        folder.write_text(name, text)
    if config.figures:
        seeds.draw(result, folder.root, folder.root.name)
    if gone and config.model_seeds != "all":
        console.print(f"Not measured yet: {', '.join(gone)}", style="dim", highlight=False)
    console.print(f"Written: {folder.root}/emergence.json, emergence.csv, emergence_pairs.csv", soft_wrap=True)
    show_across(result, console)


def _composed(overrides: Sequence[str]) -> Config:
    config: Config = OmegaConf.to_object(compose("config", overrides=list(overrides)))  # type: ignore[assignment]
    check(config)
    return config


def run(config: Config) -> int:
    """Relate one sweep, several, or two tables; the last line is the answer."""
    console = Console()
    if config.own.heads or config.own.icl:
        run_tables(config, console)
    elif config.models or config.model_seeds is not None:
        run_several(config, HydraConfig.get().overrides.task, console)
    else:
        run_store(config, console)
    return 0


def main() -> None:
    """heads= and icl= name option groups elsewhere; with a table they are own.heads and own.icl."""
    sys.argv[1:] = [re.sub(r"^(heads|icl)=(?=.*\.(csv|parquet)$)", r"own.\1=", word) for word in sys.argv[1:]]
    command(run)()


if __name__ == "__main__":
    main()
