"""Onsets, lags and associations, for one run, for several, or for trajectories measured elsewhere.

python -m sih.correlate model=pythia-70m                 a run
python -m sih.correlate models=[pythia-70m,pythia-160m] model_seeds=all
python -m sih.correlate heads=a.csv icl=b.csv            trajectories from elsewhere
"""

import re
import sys

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from sih.command import READING, command
from sih.config import Config


def run(config: Config) -> int:
    """Compute onsets and lags; the last line printed is the answer."""
    console = Console()
    if config.own.heads or config.own.icl:
        from sih.running.elsewhere import of_tables

        of_tables(config, console)
    elif config.models or config.model_seeds is not None:
        from sih.running.several import of_several

        of_several(config, HydraConfig.get().overrides.task, console)
    else:
        from sih.running.reading import views_of

        views = views_of(config)
        views.emergence()
        word = "Written" if views.made else "Unchanged"
        told = f"{word}: {views.run.root}/emergence.json, emergence.csv, emergence_pairs.csv"
        console.print(told, soft_wrap=True, highlight=False)
        views.show(console)
    return 0


def main() -> None:
    """With a table, heads= and icl= are own.heads and own.icl: icl= is a group of options elsewhere.

    A single run keeps the seed in its own record, so seed= is for tables and for several runs alone.
    """
    sys.argv[1:] = [re.sub(r"^(heads|icl)=(?=.*\.(csv|parquet)$)", r"own.\1=", word) for word in sys.argv[1:]]
    seeded = any(re.match(r"(own\.|models=|model_seeds=)", word) for word in sys.argv[1:])
    command(run, (*READING, "models", "model_seeds", "own", "figures", *(["seed"] if seeded else [])))()


if __name__ == "__main__":
    main()
