"""The answer in words, no stronger than the data, and what the flags of an onset mean."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sih.emergence import MIN_CHECKPOINTS
from sih.emergence.time_axis import STEPS, TimeAxis

# Notes on an onset, the most important first: a word or two for the terminal's table, and a sentence.
FLAGS = {
    "too_few_checkpoints": ("few steps", "fewer than 8 checkpoints: a trajectory and a bracket, but no decision"),
    "not_above_floor": ("at chance", "rises, but its peak is not above chance or the larger null"),
    "some_members": ("some tasks", "some of its tasks have an onset, but not most"),
    "not_resolved": ("not resolved", "a rise that would count, but not beyond its noise"),
    "no_emergence": ("no rise", "no rise that meets the criteria"),
    "low_support": ("gaps", "no value at more than a fifth of the checkpoints: heads have too few events there"),
    "transient": ("transient", "falls again by more than half of its rise"),
    "baseline_unobserved": ("no baseline", "the first checkpoint is later than step 1"),
    "plateau_unobserved": (
        "still rising",
        "rises beyond its noise up to the last checkpoint: the onset is a lower bound",
    ),
    "unresolved_step": ("one jump", "more than half of the rise lies between two neighbouring checkpoints"),
    "low_power": ("few steps", "12 checkpoints or fewer: little can be resolved"),
    "onset_at_first_cell": ("", "the half-rise lies between the first two checkpoints"),
    "undefined_boot": ("", "more than a fifth of the resamples show no rise"),
}


CAUTION = "One run cannot exclude a common cause"
_LEADS = 3  # at most this many are told one by one
_LATER = ("plateau_unobserved", "transient")  # a rise that may go on, or does not last


def answer_of(result: Mapping[str, Any], axis: TimeAxis = STEPS) -> str:
    """All that is said of a run: the sentence, and what knocking out heads costs.

    Args:
        result: emergence.json, or what it is made of.
    """
    shown = result["headline"]
    told = [
        sentence(result["series"], result["pairs"], shown, result["suggested"], axis),
        effects_clause(result["effects"], shown, axis),
    ]
    return ". ".join(filter(None, told))


def sentence(
    rows: list[dict], pairs: list[dict], shown: list[str], suggested: Sequence[int] = (), axis: TimeAxis = STEPS
) -> str:
    """At most four sentences: what rose and when, what did not, what came first, and what to keep in mind.

    Args:
        rows, pairs: of `timing.analyse`.
        shown: the names of the headline series.
        suggested: checkpoints that would narrow an order that is open.
    """
    most = max(row["n_checkpoints"] for row in rows)
    if most < MIN_CHECKPOINTS:
        are = "checkpoint is" if most == 1 else "checkpoints are"
        return f"{most} {are} too few to time an onset; at least {MIN_CHECKPOINTS} are needed"
    by_name = {row["series"]: row for row in rows}
    told = [by_name[name] for name in shown]
    headline = [p for p in pairs if {p["heads"], p["icl"]} <= {*shown} and p["lag_oct"] is not None]
    differ = "; ".join(_disagreeing([r["series"] for r in told if r["kind"] == "heads"], rows))
    found = [s for s in (_risen(told, axis), _not_risen(told), _order(headline, by_name, suggested, axis), differ) if s]
    if headline:
        found[-1] += f". {CAUTION}" if len(found) < 4 else f"; {CAUTION[0].lower()}{CAUTION[1:]}"
    return ". ".join(map(_begun, found))


def effects_clause(effects: dict | None, shown: Sequence[str], axis: TimeAxis = STEPS) -> str:
    """What knocking out the top heads of the headline scores costs; empty where it was not measured."""
    if effects is None:
        return ""
    rows = [r for r in effects["rows"] if r["main"] and r["group"] in shown]
    empty = [group for group in effects["no_heads"] if group in shown]
    parts = []
    for outcome in dict.fromkeys(r["outcome_label"] for r in rows):
        mine = [r for r in rows if r["outcome_label"] == outcome]
        told = [_costs(r, axis) for r in mine if r["decision"] == "more"]
        if flat := [r["group"] for r in mine if r["decision"] == "no_more"]:
            told.append(f"{', '.join(flat)} no more than matched sets at any checkpoint")
        open_ = [r for r in mine if r["decision"] == "not_resolved"]
        if unsure := [f"{r['group']} ({r['reason']})" for r in open_ if not r["few_controls"]]:
            told.append(f"{', '.join(unsure)} not resolved")
        if told:
            parts.append(f"{outcome}: {'; '.join(told)}")
    found = [f"Knocking out the top heads, the cost in {' / in '.join(parts)}"] if parts else []
    if few := [r for r in rows if r["decision"] == "not_resolved" and r["few_controls"]]:
        found.append(_beside_few(few))
    if empty:
        found.append(f"No head to knock out stands above its null for {', '.join(empty)}")
    return ". ".join(found)


def _costs(row: dict, axis: TimeAxis) -> str:
    """prefix_matching 0.31 nats, more than 20 matched sets from step 704 on."""
    cost, controls = (row["sign"] * row[name][-1] for name in ("effect", "controls"))
    return (
        f"{row['group']} {cost:.2f} nats at the last checkpoint (matched sets {controls:.2f}), more than each of "
        f"{row['n_controls'][-1]:.0f} from {axis.moment(row['from_step'])} on"
    )


# Where the heads of control sets are, by the column `matched`.
MATCHED = {
    "layer": "in the same layers",
    "any layer": "in any layer",
    "named heads too": "in any layer, other groups' heads too",
    "none": "none at all",
}


def _beside_few(rows: Sequence[dict]) -> str:
    """That too few control sets decide nothing, and what costs more at the last checkpoint than all of its own."""
    counts = sorted({round(row["n_controls"][-1] or 0) for row in rows})
    how = " or ".join(dict.fromkeys(MATCHED[row["matched"]] for row in rows if row["matched"] in MATCHED))
    beyond: dict[str, list[str]] = {}
    for row in (r for r in rows if r["n_controls"][-1]):  # without controls, their ends are null
        cost, *ends = (row["sign"] * row[n][-1] for n in ("effect", "low", "high", "controls_low", "controls_high"))
        if cost > max(ends[2:]):
            told = f"{cost:.2f} nats of {row['outcome_label']} [{min(ends[:2]):.2f}, {max(ends[:2]):.2f}]"
            beyond.setdefault(row["group"], []).append(told)
    named = "; ".join(f"{group} {' and '.join(told)}" for group, told in beyond.items())
    return (
        f"Knocking out the top heads is not decided by {' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} "
        f"control sets ({how}); more than all of them costs {named or 'no group'}"
    )


def _begun(text: str) -> str:
    """With a capital, unless it begins with a series' own name."""
    return text[0].upper() + text[1:] if text.startswith(("the order", "of the same")) else text


def _risen(told: Sequence[dict], axis: TimeAxis) -> str:
    risen = [row for row in told if row["emerged"]]
    return f"Half of the rise: {', '.join(_when(row, axis) for row in risen)}" if risen else ""


def _when(row: dict, axis: TimeAxis) -> str:
    """prefix_matching at step 753 (704 to 768, still rising)."""
    notes = [" to ".join(axis.number(row[f"cell_{end}_step"]) for end in ("lo", "hi"))]
    if "n_members" in row:
        notes.append(f"median of {row['n_members']} tasks")
    notes += [FLAGS[f][0] for f in _LATER if f in row["flags"]]
    return f"{row['series']} at {axis.moment(row['t50_step'])} ({', '.join(notes)})"


def _not_risen(told: Sequence[dict]) -> str:
    """Every headline series without an onset, by the reason: that something stayed flat is news."""
    by_reason: dict[str, list[str]] = {}
    for row in (r for r in told if not r["emerged"]):
        flags = row["flags"]
        reason = (
            "not above chance or the largest null" if "not_above_floor" in flags
            else "not in most tasks" if "some_members" in flags
            else "a rise that is not resolved from its noise" if "not_resolved" in flags
            else "too few of its checkpoints" if "too_few_checkpoints" in flags
            else "no rise"
        )  # fmt: skip
        some = f" ({row['n_emerged']} of {row['n_members']} tasks rise)" if row.get("n_emerged") else ""
        by_reason.setdefault(reason, []).append(f"{row['series']}{some}")
    if not by_reason:
        return ""
    return "Without an onset: " + "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def _order(pairs: Sequence[dict], by_name: dict[str, dict], suggested: Sequence[int], axis: TimeAxis) -> str:
    """The decided lags, at most _LEADS of them one by one, and what would decide the others."""
    if not pairs:
        return ""
    decided = sorted((p for p in pairs if p["decision"] != "unresolved"), key=lambda p: -abs(p["lag_oct"]))
    parts = [_lead(p, by_name) for p in decided[:_LEADS]]
    if len(decided) > _LEADS:
        heads = sum(p["decision"] == "heads_lead" for p in decided)
        parts.append(f"in all, heads lead in {heads} and in-context learning in {len(decided) - heads} pairs")
    if left := [p for p in pairs if p["decision"] == "unresolved"]:
        reasons = [p["reason"] for p in left]
        which = f"{left[0]['heads']} and {left[0]['icl']}" if len(left) == 1 else f"{len(left)} pairs"
        why = max(dict.fromkeys(reasons), key=reasons.count)
        parts.append(f"the order of {which} is open ({'' if len(set(reasons)) == 1 else 'mostly: '}{why})")
        parts[-1] += _would_resolve(left, by_name, suggested, axis)
    return "; ".join(parts)


def _lead(pair: dict, by_name: dict[str, dict]) -> str:
    low, high = sorted(abs(pair[f"ci_jump_{end}"]) for end in ("lo", "hi"))
    first, second = (pair["heads"], pair["icl"]) if pair["decision"] == "heads_lead" else (pair["icl"], pair["heads"])
    resting = [f"; {n} {FLAGS[f][0]}" for n in (first, second) for f in _LATER if f in by_name[n]["flags"]]
    return (
        f"{first} leads {second} by {abs(pair['lag_oct']):.1f} octaves [{low:.1f}, {high:.1f}] (98 %{''.join(resting)})"
    )


def _would_resolve(pairs: Sequence[dict], by_name: dict[str, dict], suggested: Sequence[int], axis: TimeAxis) -> str:
    """More checkpoints where there are any, else more documents: intervals shrink with the root of their number."""
    if suggested:
        tokens = "" if axis == STEPS else f" ({', '.join(map(axis.number, suggested))} tokens)"
        return f"; steps {', '.join(f'{step:,}' for step in suggested)}{tokens} would narrow it"
    wide = [p for p in pairs if p.get("reason") == "the lag's interval includes 0" and p["lag_oct"]]
    if not wide:
        return "; no further checkpoint is offered between them"
    pair = max(wide, key=lambda p: abs(p["lag_oct"]) / (p["ci_doc_hi"] - p["ci_doc_lo"] or math.inf))
    times = ((pair["ci_doc_hi"] - pair["ci_doc_lo"]) / 2 / abs(pair["lag_oct"])) ** 2
    if times <= 1:
        return "; the checkpoints are too far apart, and no further one is offered"
    documents = max(by_name[pair[kind]]["n_docs"] for kind in ("heads", "icl"))
    return f"; about {math.ceil(times * documents):,} documents or episodes instead of {documents:,} would narrow it"


def _disagreeing(shown: list[str], rows: list[dict]) -> list[str]:
    """Readings of a headline's heads that rise where it does not, or do not where it does; transient is not a rise."""
    by_name = {row["series"]: row for row in rows}
    found = []
    for name in shown:
        rises = _lasts(by_name[name])
        others = [
            r for r in rows if r.get("heads_of") == name and not {"low_support", "too_few_checkpoints"} & {*r["flags"]}
        ]
        if differ := [r["series"] for r in others if _lasts(r) != rises]:
            does = "do" if len(differ) > 1 else "does"
            verb = f"{does} not" if rises else does
            found.append(f"of the same heads, {' and '.join(differ)} {verb} rise for good, unlike {name}")
    return found


def _lasts(row: dict) -> bool:
    return bool(row["emerged"]) and "transient" not in row["flags"]
