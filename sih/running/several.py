"""Several models and seeds together, for the tests over seeds."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf
from rich.console import Console

from sih.config import Config, check, folder_of, model_name
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
    runs: list[tuple[str, int, dict]] = []
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
            result = Views(run, chosen.emergence, chosen.suggest).emergence()
            runs.append((model_name(one.model), int(seed), result))
            console.print(f"{run.name}: {result['answer']}", highlight=False)
    if not runs:
        raise SihError(f"nothing measured yet for {', '.join(gone)}; run python -m sih.sweep for each first")
    rows, pairs, over_seeds, over_sizes = across(runs, config.seed)
    result = files.finite({
        "units": UNITS, "seed": config.seed, "not_measured": gone, "series": rows, "pairs": pairs,
        "over_seeds": over_seeds, "over_sizes": over_sizes,
    })  # fmt: skip
    folder = Path(config.output) / "across" / "-".join(dict.fromkeys(model for model, _, _ in runs))
    files.write(result, writer(folder))
    if config.figures:
        from sih.analysis import seeds

        seeds.draw(result, folder, folder.name)
    if gone and config.model_seeds != "all":
        console.print(f"Not measured yet: {', '.join(gone)}", style="dim", highlight=False)
    console.print(f"Written: {folder}/emergence.json, emergence.csv, emergence_pairs.csv", soft_wrap=True)
    show_across(result, console)


def _all_seeds(config: Config) -> list[int]:
    return config.model.seeds or [config.model.seed]


def _composed(overrides: Sequence[str]) -> Config:
    config: Config = OmegaConf.to_object(compose("config", overrides=list(overrides)))  # type: ignore[assignment]
    check(config)
    return config
