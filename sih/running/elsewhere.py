"""The same statistics on trajectories measured elsewhere."""

from pathlib import Path

from rich.console import Console

from sih.config import Config
from sih.emergence import files
from sih.emergence.answer import sentence
from sih.emergence.of_run import UNITS
from sih.emergence.table import read_trajectories
from sih.emergence.terminal import show
from sih.emergence.timing import analyse
from sih.errors import SihError
from sih.results.cells import write_text


def of_tables(config: Config, console: Console) -> None:
    """Compute onsets and lags of two tables, write them to output/tables/, and print them.

    Raises:
        SihError: axis=tokens; a table is missing, or the two do not fit together.
    """
    if config.axis == "tokens":
        raise SihError("axis=tokens: tables of another tool give steps alone; expected axis=steps or null")
    given = [(kind, getattr(config.own, kind)) for kind in ("heads", "icl")]
    if missing := [kind for kind, file in given if not file]:
        raise SihError(f"{missing[0]}= is missing; expected two tables, heads=a.csv icl=b.csv")
    steps, trajectories, notes = read_trajectories([(kind, Path(file)) for kind, file in given])
    options = config.emergence
    rows, pairs = analyse(steps, trajectories, options.bandwidth_oct, options.bootstrap, config.seed)
    shown = [row["series"] for row in rows]
    for row in rows:
        row["label"] = row["series"]
    result = files.finite({
        "answer": sentence(rows, pairs, shown), "units": UNITS, "seed": config.seed,
        "bootstrap": options.bootstrap, "steps": steps, "resampling": notes, "headline": shown, "left_out": [],
        "equal_weights": [], "suspect_steps": {}, "damaged": {}, "suggested": [], "suggested_narrows_oct": [],
        "series": rows, "pairs": pairs, "heads": [],
    })  # fmt: skip
    folder = Path(config.output) / "tables" / "-".join(Path(file).stem for _, file in given)
    files.write(result, writer(folder))
    if config.figures:
        from sih.analysis import lags, onsets

        for module in (onsets, lags):
            module.draw(result, folder, folder.name)
    for series, note in notes.items():
        if note != "documents":
            console.print(f"{series}: {note}", style="dim", highlight=False)
    console.print(f"Written: {folder}/emergence.json, emergence.csv, emergence_pairs.csv", soft_wrap=True)
    show(result, console)


def writer(folder: Path):
    """A function that writes a text into a folder of views: see results.cells.write_text."""
    return lambda name, text: write_text(
        folder / name, text, lambda error: f"{folder} cannot be written: {error.strerror or error}"
    )
