"""Every figure of a run, in reading order."""

from pathlib import Path

from sih.analysis import curves, effects, head_overlap, heatmaps, lags, onsets, routing, top_heads, trajectories

from sih.results.trajectories import Trajectories


def draw_all(data: Trajectories, emergence: dict, folder: Path, title: str) -> list[Path]:
    """Draw every figure that has something to show, as PNG and SVG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *trajectories.draw(emergence, folder, title),
        *curves.draw(data, emergence, folder, title),
        *heatmaps.draw(data, emergence, folder, title),
        *top_heads.draw(emergence, folder, title),
        *effects.draw(data, emergence, folder, title),
        *(file for module in (onsets, lags, routing, head_overlap) for file in module.draw(emergence, folder, title)),
    ]
