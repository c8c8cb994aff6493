"""Several models and seeds together, for the tests over seeds."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf
from rich.console import Console

from sih.config import Config, check, folder_of, seeds_of, series_name
from sih.emergence import files
from sih.emergence.across import across
from sih.emergence.of_run import UNITS
from sih.emergence.terminal import show_across
from sih.errors import SihError
from sih.results.run import Run
from sih.running.elsewhere import writer
from sih.running.views import Views


def of_several(config: Config, overrides: Sequence[str], console: Console) -> None:
    """Analyse every chosen model and seed that has a run, each by itself and then together, into output/across/.

    Raises:
        SihError: none of them has one.
    """
    kept = [o for o in overrides if not re.match(r"\+*(models|model_seeds|model|model\.seed)=", o)]
    opened: list[tuple[Config, Run]] = []
    gone: list[str] = []
    for model in config.models or [""]:
        named = [f"model={model}"] if model else [o for o in overrides if o.startswith("model=")]
        one = _composed([*kept, *named])
        wanted = config.model_seeds if config.model_seeds is not None else [one.model.seed]
        for seed in _all_seeds(one) if wanted == "all" else wanted:
            chosen = _composed([*kept, *named, f"model.seed={seed}"])
            root = folder_of(chosen)
            if not root.is_dir() or not (run := Run.open(root)).steps():
                gone.append(root.name)
                continue
            opened.append((chosen, run))
    if not opened:
        raise SihError(f"nothing measured yet for {', '.join(gone)}; run python -m sih.sweep for each first")
    sizes = {series_name(one.model): run.record.model.get("tokens_per_step") for one, run in opened}
    axis = config.axis or ("steps" if None in sizes.values() else "tokens")
    if axis == "tokens" and None in sizes.values():
        raise SihError(f"axis=tokens, but the tokens of a step are unknown for {', '.join(_unknown(sizes))}")
    runs: list[tuple[str, int, dict]] = []
    for one, run in opened:
        views = Views(run, one.emergence, one.suggest, axis=axis)
        runs.append((series_name(one.model), one.model.seed, views.emergence()))
        console.print(f"{run.name}: {views.on_axis()['answer']}", highlight=False)
    rows, pairs, over_seeds, over_sizes = across(runs, config.seed)
    for row in rows:
        row["tokens_per_step"] = size = sizes[row["model"]]
        for name in ("t50", "cell_lo", "cell_hi"):
            step = row.get(f"{name}_step")
            row[f"{name}_tokens"] = None if size is None or step is None else step * size
    result = files.finite({
        "axis": axis, "units": UNITS, "seed": config.seed, "not_measured": gone, "series": rows, "pairs": pairs,
        "over_seeds": over_seeds, "over_sizes": over_sizes,
    })  # fmt: skip
    folder = Path(config.output) / "across" / "-".join(dict.fromkeys(model for model, _, _ in runs))
    files.write(result, writer(folder))
    if config.figures:
        from sih.analysis import seeds, transitions

        seeds.draw(result, folder, folder.name)
        transitions.draw(runs, axis, folder, folder.name)
    if gone and config.model_seeds != "all":
        console.print(f"Not measured yet: {', '.join(gone)}", style="dim", highlight=False)
    console.print(f"Written: {folder}/emergence.json, emergence.csv, emergence_pairs.csv", soft_wrap=True)
    show_across(result, console)


def _all_seeds(config: Config) -> list[int]:
    return seeds_of(config.model) or [config.model.seed]


def _unknown(sizes: dict[str, int | None]) -> list[str]:
    return [model for model, size in sizes.items() if size is None]


def _composed(overrides: Sequence[str]) -> Config:
    config: Config = OmegaConf.to_object(compose("config", overrides=list(overrides)))  # type: ignore[assignment]
    check(config)
    return config
