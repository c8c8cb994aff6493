"""What Hub repositories serve under each step's label, judged by the sha256 of their weight files.

Two steps of one training run never have the same weights, since every step changes every weight. Steps 0 and 1
are the exception where the first learning rate is 0. So a weight file that appears under two labels convicts them.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sih.checkpoints.files import TOKENIZER_NAMES, WEIGHT_NAMES, weight_names

REPORTED = Path(__file__).with_name("reported.csv")


@dataclass(frozen=True)
class HubFile:
    """A file of one revision. `sha256` is known for LFS files, `git_sha1` (of the git blob) for all."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True)
class Revision:
    """One commit's files; `step` is None for main, `name` its branch or tag, in the repository `repo`."""

    step: int | None
    commit: str
    files: tuple[HubFile, ...]
    name: str
    repo: str

    @property
    def weights(self) -> list[HubFile]:
        chosen = set(weight_names(f.name for f in self.files))
        return [f for f in self.files if f.name in chosen]

    @property
    def all_weights(self) -> dict[str, frozenset[str]]:
        """sha256s of all weight files, by format; all of them are judged, whichever format is fetched."""
        found: dict[str, frozenset[str]] = {}
        for f in self.files:
            if f.sha256 and any(re.fullmatch(pattern, f.name) for pattern in WEIGHT_NAMES):
                kind = f.name.rsplit(".", 1)[1]
                found[kind] = found.get(kind, frozenset()) | {f.sha256}
        return found

    def same_weights(self, other: "Revision") -> bool:
        """Whether all files are the same in some format that both have."""
        ours, theirs = self.all_weights, other.all_weights
        return any(ours[kind] == theirs[kind] for kind in ours.keys() & theirs.keys())

    @property
    def wanted(self) -> list[HubFile]:
        """The files that a measurement needs: weights, the index of sharded weights, config and tokenizer.

        Nothing else is fetched: no optimiser states, no training_args.bin, no code.
        """
        weights = self.weights
        others = {"config.json", *(f.name for f in self.tokenizer)}
        if len(weights) > 1:
            others.add(f"{'model.safetensors' if self.format == 'safetensors' else 'pytorch_model.bin'}.index.json")
        return weights + [f for f in self.files if f.name in others]

    @property
    def tokenizer(self) -> list[HubFile]:
        """tokenizer.json, or vocab.json and merges.txt where it is absent; empty without either."""
        by_name = {f.name: f for f in self.files}
        return next(([by_name[n] for n in names] for names in TOKENIZER_NAMES if by_name.keys() >= set(names)), [])

    @property
    def format(self) -> str:
        """safetensors, bin, or none."""
        weights = self.weights
        return weights[0].name.rsplit(".", 1)[1] if weights else "none"

    @property
    def bytes(self) -> int:
        """Bytes to fetch."""
        return sum(f.size for f in self.wanted)


@dataclass
class Audit:
    """An audit's findings.

    `suspect` gives the reason for each convicted step, and `explained` a public report
    about it, if there is one. `revisions` are all that were read; `unread` says why the others were not, and those are
    never convicted. `grid` has the steps that are known to exist, empty where that is unknown.
    """

    repos: tuple[str, ...]
    revisions: dict[int, Revision]
    main: Revision | None
    unread: dict[int, str] = field(default_factory=dict)
    grid: Sequence[int] = ()
    suspect: dict[int, str] = field(default_factory=dict)
    sharing: dict[int, list[str]] = field(default_factory=dict)  # the other labels that have a suspect step's files
    explained: dict[int, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)  # reports on this repository that no hash confirms
    again: dict[int, Revision] = field(default_factory=dict)  # steps that a further repository has too, and what it has

    @property
    def repo(self) -> str:
        """The repositories, in words."""
        return " and ".join(self.repos)

    @property
    def steps(self) -> list[int]:
        """All steps that are offered."""
        return sorted([*self.revisions, *self.unread])

    @property
    def missing(self) -> list[int]:
        """Steps of the known grid that the repositories do not offer."""
        return [s for s in self.grid if s not in set(self.steps)]

    @property
    def main_is_last(self) -> bool | None:
        """Whether main has the last step's weights; None when that cannot be known."""
        last = self.revisions.get(max(self.steps))
        if last is None or self.main is None or not self.main.weights:
            return None
        return self.main.same_weights(last)

    @property
    def like_main(self) -> list[str]:
        """The labels that have main's weights."""
        return [r.name for r in self.revisions.values() if self.main is not None and self.main.same_weights(r)]


def examine(audit: Audit, compared: bool = True) -> Audit:
    """Convict every step whose weights also appear under another label, in any format.

    A file that two labels share is wrong under at least one of them, and a hash cannot say which. Two cases are
    expected: step 0 shares with step 1, and the last step with main. But main cannot have the initial weights, since
    it is where training ends. All other steps that share a file are convicted, and so are revisions without weights.

    Args:
        compared: whether main should have the last step's weights. Where it may hold any step's, or those of a later
            stage of training, nothing is concluded from it.
    """
    revisions, last = audit.revisions, max(audit.steps)
    main = audit.main if compared else None
    owners: dict[str, set[int]] = {}
    for step, r in revisions.items():
        for sha256 in _hashes(r):
            owners.setdefault(sha256, set()).add(step)
    start = {0, 1} if {0, 1} <= revisions.keys() and revisions[0].same_weights(revisions[1]) else set()
    end = {last} if compared and audit.main_is_last else set()
    for step, r in revisions.items():
        if not r.weights or any(f.sha256 is None for f in r.weights):
            audit.suspect[step] = "the Hub gives no sha256 for its weights" if r.weights else "no weights"
            continue
        sharing = set().union(*(owners[sha256] for sha256 in _hashes(r))) - {step}
        others = [revisions[other] for other in sorted(sharing)]
        # If main has the last step's weights, it counts as that step's label, not as another one.
        if main is not None and not audit.main_is_last and _hashes(r) & _hashes(main):
            others.append(main)
        initial = step in start and not end & sharing and main not in others
        final = step in end and not start & sharing
        if not others or initial or final:
            continue
        labels = [other.name for other in others]
        same = all(other.same_weights(r) for other in others)
        audit.sharing[step] = labels
        audit.suspect[step] = f"{'the same weights as' if same else 'shares a weight file with'} {_some(labels)}"
    _explain(audit)
    return audit


def _hashes(r: Revision) -> frozenset[str]:
    return frozenset[str]().union(*r.all_weights.values())


def _some(labels: list[str]) -> str:
    shown = labels if len(labels) <= 3 else [*labels[:2], f"{len(labels) - 2} others"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _explain(audit: Audit) -> None:
    """Add public reports to the convictions; a report alone convicts no step."""
    with open(REPORTED, encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            if row["repo"] not in audit.repos:
                continue
            convicted = [s for s in audit.suspect if _listed(s, row["steps"])]
            for step in convicted:
                audit.explained[step] = row["source"]
            if not convicted and any(_listed(s, row["steps"]) for s in audit.steps):
                audit.unseen.append(f"steps {row['steps']}: {row['report']} ({row['source']})")


def _listed(step: int, steps: str) -> bool:
    """Whether a step is among those of "0-512 1000", ranges with both ends included."""
    ends = (part.partition("-") for part in steps.split())
    return any(int(low) <= step <= int(high or low) for low, _, high in ends)
