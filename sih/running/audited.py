"""An audit of a Hub repository, on screen and as a table."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from sih.checkpoints.audit import Audit
from sih.checkpoints.schedule import in_ranges
from sih.config import readable_bytes

HEADER = [
    "step",
    "repo",
    "revision",
    "commit",
    "format",
    "files",
    "bytes",
    "weights_sha256",
    "verdict",
    "reason",
    "reported",
]


def rows(audit: Audit) -> list[list[object]]:
    """One row for each step that is offered or missing, in the order of HEADER."""
    found: list[list[object]] = []
    for step, r in audit.revisions.items():
        hashes = " ".join(f.sha256 or "unknown" for f in r.weights)
        verdict = "suspect" if step in audit.suspect else "ok"
        said = [audit.suspect.get(step, ""), audit.explained.get(step, "")]
        found.append([step, r.repo, r.name, r.commit, r.format, len(r.weights), r.bytes, hashes, verdict, *said])
    found += [[s, "", "", "", "", 0, 0, "", "unread", reason, ""] for s, reason in audit.unread.items()]
    found += [[s, "", "", "", "", 0, 0, "", "missing", "no such branch or tag", ""] for s in audit.missing]
    return sorted(found, key=lambda row: int(str(row[0])))


def show(audit: Audit, chosen: list[int], budget: int, console: Console, notes: Sequence[str] = ()) -> None:
    """Print the audit on one screen, within 80 columns; `notes` are what is known of the series."""
    offered = audit.steps
    formats = Counter(
        f"{r.format}{f' in {len(r.weights)} shards' if len(r.weights) > 1 else ''}" for r in audit.revisions.values()
    )
    sizes = [audit.revisions[s].bytes for s in chosen if s in audit.revisions] or [0]
    ends = [audit.revisions[s].name if s in audit.revisions else f"step {s}" for s in (offered[0], offered[-1])]
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_row("revisions", f"{len(offered)}, {ends[0]} to {ends[1]}")
    if audit.grid:
        facts.add_row("missing", in_ranges(audit.missing, list(audit.grid)) or f"none of the {len(audit.grid)} known")
    facts.add_row("formats", ", ".join(f"{count} {name}" for name, count in formats.most_common()))
    facts.add_row("main", _main(audit, ends[1]))
    facts.add_row(
        "to fetch",
        f"{readable_bytes(sum(sizes))} for the {len(chosen)} chosen steps, at most {readable_bytes(max(sizes))} "
        f"each; kept on disk at any time: {readable_bytes(budget)}",
    )
    console.print(f"[bold]{audit.repo}[/bold]")
    console.print(facts, highlight=False)
    for note in notes:
        console.print(f"[yellow]Known:[/yellow] {note}", highlight=False)
    if audit.again:
        told = {True: "the same weight files", False: "other weight files"}
        for same in (True, False):
            if steps := [s for s, r in audit.again.items() if audit.revisions[s].same_weights(r) is same]:
                console.print(
                    f"Also in {audit.again[steps[0]].repo}, with {told[same]}: steps {in_ranges(steps, offered)}",
                    highlight=False,
                )
    for step, reason in audit.unread.items():
        console.print(f"[red]step {step} could not be read:[/red] {reason}", highlight=False)
    if not audit.suspect:
        console.print("No two labels share a weight file, except steps 0 and 1, which should.", highlight=False)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold red", title_justify="left")
        table.add_column("suspect steps", ratio=3)
        table.add_column("why", ratio=3)
        table.add_column("reported in", ratio=2)
        for reason, source, steps in _grouped(audit):
            table.add_row(f"{in_ranges(steps, offered)} ({len(steps)})", reason, source)
        console.print(table, highlight=False)
        console.print(
            f"A sweep leaves these {len(audit.suspect)} out; checkpoints.allow_suspect=true measures and marks them.",
            highlight=False,
        )
    for report in audit.unseen:
        console.print(f"[yellow]Reported, but not visible in the hashes:[/yellow] {report}", highlight=False)


def _main(audit: Audit, last: str) -> str:
    """Whose weights main has, in words."""
    if audit.main_is_last:
        return f"the weights of {last}"
    if audit.main is None or not audit.main.weights:
        return "cannot be compared"
    if audit.like_main:
        return f"the weights of {audit.like_main[0]}, not of {last}"
    return f"other weights than {last}"


def _grouped(audit: Audit) -> list[tuple[str, str, list[int]]]:
    """Suspect steps grouped by reason; steps that share the same files form one group."""
    found: dict[tuple[object, ...], list[int]] = {}
    for step, reason in audit.suspect.items():
        labels = frozenset([*audit.sharing.get(step, []), audit.revisions[step].name])
        kind = reason.split(" ")[0]  # "the same ...", "shares ...", or a reason that names no other label
        key = (labels, kind) if step in audit.sharing else (reason,)
        found.setdefault((*key, audit.explained.get(step, "")), []).append(step)
    told = []
    for (*_, source), steps in found.items():
        reason = audit.suspect[steps[0]]
        if steps[0] in audit.sharing:
            inside = {audit.revisions[s].name for s in steps}
            outside = [label for label in audit.sharing[steps[0]] if label not in inside]
            reason = "one set of weights" if reason.startswith("the same") else "share a weight file"
            reason += f" with {', '.join(outside)}" if outside else ""
        told.append((reason, _short(str(source)), steps))
    return told


def _short(address: str) -> str:
    """https://github.com/EleutherAI/pythia/issues/205 -> pythia#205."""
    return "#".join(address.split("/issues/")).rsplit("/", 1)[-1]
