"""One self-contained page to share: `python -m sih.report` writes report.html beside the results.

Everything on it is read from the store and emergence.json; pictures travel inside, so no network is needed.
"""

import base64
import csv
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from sih.answer import FLAGS
from sih.command import command
from sih.config import Config, model_name
from sih.correlate import correlate
from sih.figures import draw_all
from sih.heads.relation_index import NULLS
from sih.results import find
from sih.store import Store
from sih.trajectories import Trajectories, label

# File, section, alternative text, caption.
PICTURES = [
    ("trajectories", "curves", "Head scores, on the left, and in-context-learning scores, on the right, over training",
     "95 % intervals over documents, nulls and chance; the shaded bracket holds the half-rise."),
    ("onsets", "curves", "Half-rise of every score with three intervals", "Onsets of all scores that rise."),
    ("lags", "curves", "Lags from head scores to in-context-learning scores with three intervals",
     "Right of zero, heads come first."),
    ("heatmaps", "heads", "Layer by head maps of the head scores at seven checkpoints",
     "Every head, at seven checkpoints over training; grey where a head has too few events."),
    ("top_heads", "heads", "Relation index of each relation's chosen heads over training, beside the larger null",
     "Heads chosen on one half of the documents and drawn on the other."),
    ("routing", "heads", "Change of relation index per opportunity, split into routing and OV share",
     "Whether a rise is a change of where heads look or of what they write there."),
    ("head_overlap", "heads", "Overlap of the top heads at each checkpoint with the final top heads",
     "Whether the early heads are the mature ones."),
]  # fmt: skip
SECTIONS = {"curves": "Over training", "heads": "The heads"}
LIMITS = [
    "One training run cannot show that heads cause in-context learning: two curves that both rise correlate whatever "
    "the reason, and even an association that survives the tests can have a common cause.",
    "The public checkpoints limit how finely an onset can be timed; the brackets say how much.",
    "A relation index says that a head could move a relation forward, not that the model uses it. It reads the current "
    "token's embedding only; without its nulls it is no evidence.",
    "Accuracy at chance with format accuracy near 1 is a model that learned the format, not the pattern.",
    "Scores are those of the texts and prompts listed here; other texts give other numbers.",
]


def write(config: Config, store: Store, data: Trajectories, emergence: dict[str, Any]) -> Path:
    """report.html of a store whose figures are drawn; returns the file."""
    shown = [row for row in emergence["series"] if row["series"] in emergence["headline"]]
    manifests = [store.manifest(step) for step in store.steps()]
    pictures = {section: [f for f in PICTURES if f[1] == section] for section in SECTIONS}
    sections = [("timing", "When, and which first"), *SECTIONS.items(), ("data", "Data"), ("limits", "Limits"),
                ("provenance", "Provenance")]  # fmt: skip
    page = Environment(
        loader=PackageLoader("sih", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("report.html.jinja")  # fmt: skip
    text = page.render(
        model=model_name(config.model),
        config_hash=store.root.name,
        emergence=emergence,
        warnings=_warnings(emergence),
        sections=sections,
        timing=[_timing(row) for row in shown],
        lags=[_lag(pair) for pair in emergence["pairs"]
              if {pair["heads"], pair["icl"]} <= set(emergence["headline"]) and pair["lag_oct"] is not None],
        pictures=[
            (section, SECTIONS[section], [_picture(store.root / "figures", *f) for f in files
                                          if (store.root / "figures" / f"{f[0]}.png").exists()])
            for section, files in pictures.items()
        ],
        heads=_heads(data),
        counts=_counts(store, data),
        exclusions=_exclusions(store),
        limits=LIMITS + ([_DEMONSTRATION] if config.model.source == "tiny" else []),
        provenance=_provenance(manifests),
        weights=[
            {
                "step": m["step"], "revision": m["revision"], "measured_at": m["measured_at"],
                "sha256": " ".join(m["weights_sha256"].values()),
            }
            for m in manifests
        ],
    )  # fmt: skip
    return store.write_text("report.html", text)


_DEMONSTRATION = (
    "This is the embedded series, a small model that sih trained itself: a demonstration of the instrument, not "
    "evidence about language models."
)


def _warnings(emergence: dict[str, Any]) -> list[str]:
    found = [
        f"the same weights stand under steps {', '.join(map(str, steps))}; "
        "at least one label is wrong, and so is the answer."
        for steps in emergence["equal_weights"]
    ]
    if suspect := emergence["suspect_steps"]:
        found.append(f"measured although the audit convicts them: steps {', '.join(map(str, suspect))}.")
    if failed := emergence["failed_steps"]:
        found.append(f"without a result: steps {', '.join(map(str, failed))}.")
    return found


def _timing(row: dict[str, Any]) -> dict[str, str]:
    found = {
        "name": row["series"], "base": _number(row.get("base")), "peak": _number(row.get("top")), "half": "none",
        "interval": "", "between": "", "p": _number(row.get("p_emergence")),
        "notes": "; ".join(FLAGS[flag][1] for flag in row["flags"]),
    }  # fmt: skip
    if row["emerged"]:
        low, high = (_step(row[f"ci_jump_{end}_log2"]) for end in ("lo", "hi"))
        found |= {
            "half": _step(row["t50_log2"]), "interval": f"{low} to {high}",
            "between": f"{row['cell_lo_step']:,} and {row['cell_hi_step']:,}",
        }  # fmt: skip
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


def _heads(data: Trajectories) -> list[dict[str, Any]]:
    """Every chosen head, what it was chosen for, and its scores at the last checkpoint."""
    roles: dict[str, list[str]] = {}
    for series in data.headline:
        for head in series.heads:
            roles.setdefault(head, []).append(series.name)
    last = int(data.steps[-1])
    induction = data.induction_heads[data.induction_heads["step"] == last]
    other = {label(int(row["layer"]), int(row["head"])): row for row in induction.to_dict("records")}
    found = []
    for head, names in sorted(roles.items(), key=lambda item: tuple(map(int, item[0][1:].split("H")))):
        index, null = math.nan, math.nan
        for name in (n for n in names if n in data.relations):
            sums = data.relations[name]
            h = [label(*x) for x in sums.heads].index(head)
            index = data.index_HC(sums, False)[h, -1]
            null = np.fmax.reduce([data.index_HC(sums, False, n)[h, -1] for n in NULLS])
            break
        scores = [index, null, *(other[head][name] for name in _ROLES)]
        found.append({"head": head, "roles": ", ".join(names), "scores": [_number(float(v)) for v in scores]})
    return found


_ROLES = (
    "prefix_matching_score",
    "copying_score",
    "previous_token_score",
    "duplicate_token_score",
    "first_token_share",
)


def _counts(store: Store, data: Trajectories) -> str:
    files = ("examples", "prompts", "loss_texts")
    lines = {name: (store.root / f"{name}.jsonl").read_bytes().count(b"\n") for name in files}
    heads = len(data.induction_heads.drop_duplicates(["layer", "head"]))
    return (
        f"{heads} heads on {lines['examples']:,} texts with relations, {lines['prompts']:,} few-shot prompts and "
        f"{lines['loss_texts']:,} texts for the loss, the same at every checkpoint."
    )


def _exclusions(store: Store) -> list[tuple[str, str, int]]:
    with open(store.root / "exclusions.csv", encoding="utf-8", newline="") as lines:
        return [(row["source"], row["reason"], int(row["count"])) for row in csv.DictReader(lines)]


def _provenance(manifests: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What all manifests agree on, and how they differ where they do not."""

    def agreed(name: str) -> str:
        values = dict.fromkeys(_plain(m.get(name)) for m in manifests)
        return " | ".join(values)

    wanted = ("model", "config_hash", "seed", "dtype", "device", "host", "git_commit", "tokenizer_sha256",
              "data_sha256", "versions")  # fmt: skip
    return [(name, agreed(name)) for name in wanted]


def _plain(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _picture(folder: Path, name: str, section: str, alt: str, caption: str) -> dict[str, Any]:
    data = (folder / f"{name}.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of the PNG's first chunk
    return {"data": base64.b64encode(data).decode(), "width": width, "height": height, "alt": alt, "caption": caption}


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _step(log2: float) -> str:
    return f"{2**log2 - 1:,.0f}"


def run(config: Config) -> int:
    """Draw the figures and write the page."""
    store = find(config)
    data, emergence = correlate(store, config)
    draw_all(data, emergence, store.root / "figures", model_name(config.model))
    Console().print(f"Written: {write(config, store, data, emergence)}", soft_wrap=True, highlight=False)
    return 0


main = command(run)

if __name__ == "__main__":
    main()
