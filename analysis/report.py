"""One self-contained page to share: it contains its pictures, so it needs no network.

Everything on it comes from a run's results and emergence.json.
"""

import base64
import csv
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sih.analysis.explore import chart

from sih.emergence.answer import FLAGS
from sih.emergence.time_axis import TimeAxis, axis_of
from sih.results.run import Run
from sih.results.trajectories import Trajectories

# File, section, alternative text, caption.
PICTURES = [
    ("trajectories", "curves", "Head scores, on the left, and in-context-learning scores, on the right, over training",
     "95 % intervals over documents, nulls and chance; the half-rise lies inside the shaded bracket."),
    ("onsets", "curves", "Half-rise of every score with three intervals", "Onsets of all scores that rise."),
    ("lags", "curves", "Lags from head scores to in-context-learning scores with three intervals",
     "To the right of zero, heads come first."),
    ("curves_shots", "curves", "Few-shot scores over the number of examples at several checkpoints",
     "Format, accuracy and margin over the number of examples, from early checkpoints (light) to late ones (dark)."),
    ("curves_positions", "curves", "Loss over the number of tokens before at several checkpoints",
     "Loss over the number of tokens before, from early checkpoints (light) to late ones (dark)."),
    ("heatmaps", "heads", "Layer by head maps of the head scores at eight checkpoints",
     "Every head, at eight checkpoints over log time and around the onsets; grey where a head has too few events."),
    ("top_heads", "heads", "Relation index of each relation's chosen heads over training, with the larger null",
     "Heads chosen on one half of the documents and shown on the other."),
    ("top_heads_more", "heads", "The remaining series of chosen heads over training, with the larger null",
     "The remaining series, in the same way."),
    ("effects", "effects", "Cost of taking out each group of heads over training, with the range of its control sets",
     "In-context learning with a group of heads taken out, against control sets that match it; the yellow band is the "
     "onset of the effect, the dashed line the half-rise of the heads' own score."),
    ("loads", "effects", "Every head's score against what taking it out costs to first order, at a few checkpoints",
     "A head can carry a score and no load, and a load without a score."),
    ("effects_check", "effects", "Correlation and slope of first-order with exact effects, and heads that groups share",
     "Where the correlation is below .8 or the slope outside 1/2 to 2, first-order effects are not to be trusted."),
    ("routing", "heads", "Change of relation index per opportunity, split into routing and OV share",
     "Whether a rise is a change of where heads look or of what they write there."),
    ("head_overlap", "heads", "Overlap of the top heads at each checkpoint with the final top heads",
     "Whether the early heads are still the top heads at the end."),
]  # fmt: skip
HEADS = 60  # rows of the table of heads
SECTIONS = {"curves": "Over training", "effects": "Does in-context learning need these heads?", "heads": "The heads"}
LIMITS = [
    "One training run cannot show that heads cause in-context learning. Any two rising curves correlate, and even an "
    "association that survives the tests can have a common cause.",
    "The public checkpoints limit how precisely an onset can be timed; the brackets show how much.",
    "A relation index says that a head could move a relation forward, not that the model uses it. It reads the current "
    "token's embedding only; without its nulls it is no evidence.",
    "Accuracy at chance with format accuracy near 1 means that the model learned the format, not the pattern.",
    "The scores hold for the texts and episodes listed here; other texts give other numbers.",
]


def page(data: Trajectories, emergence: dict[str, Any]) -> str:
    """The page of a run whose figures are drawn."""
    run = data.run
    shown = [row for row in emergence["series"] if row["series"] in emergence["headline"]]
    manifests = run.manifests()
    pictures = {section: [f for f in PICTURES if f[1] == section] for section in SECTIONS}
    if not emergence.get("effects"):
        del pictures["effects"]
    shown_sections = {name: SECTIONS[name] for name in pictures}
    named = {
        "timing": "When, and which first",
        "explored": "Explore",
        **shown_sections,
        "data": "Data",
        "limits": "Limits",
    }
    sections = [*named.items(), ("provenance", "Provenance")]
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("report.html.jinja")  # fmt: skip
    axis = axis_of(emergence)
    columns, heads = _heads(data, emergence)
    return template.render(
        model=run.model,
        run=run.name,
        emergence=emergence,
        axis=axis,
        warnings=_warnings(emergence),
        sections=sections,
        timing=[_timing(row, axis) for row in shown],
        lags=[_lag(pair) for pair in emergence["pairs"]
              if {pair["heads"], pair["icl"]} <= set(emergence["headline"]) and pair["lag_oct"] is not None],
        pictures=[
            (section, SECTIONS[section], [_picture(run.root / "figures", *f) for f in files
                                          if (run.root / "figures" / f"{f[0]}.png").exists()])
            for section, files in pictures.items()
        ],
        explore=chart(data, emergence),
        head_columns=columns,
        heads=heads[:HEADS],
        heads_left=len(heads) - len(heads[:HEADS]),
        counts=_counts(run),
        exclusions=_exclusions(run),
        limits=LIMITS + ([_DEMONSTRATION] if run.record.model["source"] == "tiny" else []),
        provenance=_provenance(run, manifests),
        weights=[_weights(step, by_score) for step, by_score in manifests.items()],
    )  # fmt: skip


_DEMONSTRATION = (
    "This is the embedded series, a small model that sih trained itself: a demonstration of the instrument, not "
    "evidence about language models."
)


def _warnings(emergence: dict[str, Any]) -> list[str]:
    found = [
        f"the same weights appear under steps {', '.join(map(str, steps))}; "
        "at least one label is wrong, and so is the answer."
        for steps in emergence["equal_weights"]
    ]
    if suspect := emergence["suspect_steps"]:
        found.append(f"measured although the audit convicts them: steps {', '.join(map(str, suspect))}.")
    if failed := emergence["failed_steps"]:
        found.append(f"steps without a result for some score: {', '.join(map(str, failed))}.")
    if damaged := emergence["damaged"]:
        found.append(f"files that could not be read, so are left out: {', '.join(damaged)}.")
    return found


def _timing(row: dict[str, Any], axis: TimeAxis) -> dict[str, str]:
    found = {
        "name": row["label"], "base": _number(row.get("base")), "peak": _number(row.get("top")), "half": "none",
        "interval": "", "between": "", "p": _number(row.get("p_emergence")),
        "notes": "; ".join(FLAGS[flag][1] for flag in row["flags"]),
    }  # fmt: skip
    if row["emerged"]:
        half, low, high = (axis.number(2 ** row[f"{name}_log2"] - 1) for name in ("t50", "ci_jump_lo", "ci_jump_hi"))
        first, second = (axis.number(row[f"cell_{end}_step"]) for end in ("lo", "hi"))
        found |= {"half": half, "interval": f"{low} to {high}", "between": f"{first} and {second}"}
    return found


def _lag(pair: dict[str, Any]) -> dict[str, str]:
    said = {"heads_lead": "heads lead", "icl_leads": "in-context learning leads"}
    return {
        "heads": pair["heads"], "icl": pair["icl"], "lag": f"{pair['lag_oct']:+.2f}",
        "interval": f"{pair['ci_jump_lo']:+.2f} to {pair['ci_jump_hi']:+.2f}",
        "decision": said.get(pair["decision"]) or f"unresolved: {pair['reason']}",
        "coincidence": f"{_number(pair['p_coincidence'])} ({pair['n_controls']})",
        "residual": _number(pair["p_residual"]),
    }  # fmt: skip


def _heads(data: Trajectories, emergence: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns, and every chosen head: what it was chosen for, and its scores at the last checkpoint."""
    names = {row["series"]: row["label"] for row in emergence["series"]}
    maps = [m for m in data.maps if m.over is None and data.has(m.table)]
    last = data.head_maps(maps, emergence["steps"][-1:])
    values = [last[m.name][0].reshape(data.shape(data.tables[m.table])) for m in maps]
    found = []
    for row in emergence["roles"]:
        place = row["layer"], row["number"]
        scores = [row["value"], row["null"], *(float(value_LH[place]) for value_LH in values)]
        told = ", ".join(names[n] for n in row["series"])
        found.append({"head": row["head"], "roles": told, "scores": [_number(v) for v in scores]})
    return ["value", "largest null", *(m.label for m in maps)], found


def _counts(run: Run) -> str:
    told = [d["told"] for d in run.descriptions().values() if d.get("told")]
    shape = next(iter(next(iter(run.manifests().values())).values()))["shape"]
    heads = shape["layers"] * shape["heads"]
    return f"{heads} heads on {', '.join(told)}; the same at every checkpoint."


def _exclusions(run: Run) -> list[tuple[str, str, int]]:
    found = []
    for cells in run.scores.values():
        file = cells.root / "left_out.csv"
        if file.exists():
            with open(file, encoding="utf-8", newline="") as lines:
                found += [(row["source"], row["reason"], int(row["count"])) for row in csv.DictReader(lines)]
    return found


def _provenance(run: Run, manifests: Mapping[int, Mapping[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    """The settings, and what the manifests say; where they differ, every value."""
    every = [m for by_score in manifests.values() for m in by_score.values()]

    def agreed(name: str) -> str:
        return " | ".join(dict.fromkeys(_plain(m.get(name)) for m in every))

    wanted = ("model", "seed", "dtype", "device", "host", "git_commit", "tokenizer_sha256", "versions")
    texts = {role: sha for m in every for role, sha in m["texts_sha256"].items()}
    return [
        ("settings", _plain(run.record.settings)),
        *((name, agreed(name)) for name in wanted),
        ("texts_sha256", _plain(texts) or "none"),
    ]


def _weights(step: int, by_score: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A step's weights by their sha256; several if scores were measured on different ones."""
    first = next(iter(by_score.values()))
    found = dict.fromkeys(" ".join(m["weights_sha256"].values()) for m in by_score.values())
    return {
        "step": step, "revision": first["revision"], "sha256": " | ".join(found),
        "measured_at": max(m["measured_at"] for m in by_score.values()),
    }  # fmt: skip


def _plain(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _picture(folder: Path, name: str, section: str, alt: str, caption: str) -> dict[str, Any]:
    data = (folder / f"{name}.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of the PNG's first chunk
    return {"data": base64.b64encode(data).decode(), "width": width, "height": height, "alt": alt, "caption": caption}


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"
