"""Draw the figures of a sweep that is in the store again: `python -m sih.figures model=...`."""

from pathlib import Path

from sih.analysis import head_overlap, heatmaps, lags, onsets, routing, top_heads, trajectories
from sih.command import command
from sih.config import Config, model_name
from sih.correlate import correlate
from sih.results import find
from sih.trajectories import Trajectories


def draw_all(data: Trajectories, emergence: dict, folder: Path, title: str) -> list[Path]:
    """Every figure as PNG and SVG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *trajectories.draw(data, emergence, folder, title),
        *heatmaps.draw(data, folder, title),
        *top_heads.draw(data, folder, title),
        *draw_emergence(emergence, folder, title),
    ]


def draw_emergence(emergence: dict, folder: Path, title: str) -> list[Path]:
    """The figures that need emergence.json alone; those with nothing to show are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [module.draw(emergence, folder, title) for module in (onsets, lags, routing, head_overlap)]
    return [file for files in drawn for file in files]


def run(config: Config) -> int:
    """Draw every figure of a store."""
    store = find(config)
    data, emergence = correlate(store, config)
    for file in draw_all(data, emergence, store.root / "figures", model_name(config.model)):
        print(file)
    return 0


main = command(run)

if __name__ == "__main__":
    main()
