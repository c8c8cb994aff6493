"""What a Hub repository serves under each step's label, judged by the sha256 of its weight files.

Two steps of one training run never have the same weights, since every step changes every weight. Steps 0 and 1
are the exception: the first learning rate is 0. So a weight file that appears under two labels convicts them.
"""

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

from sih.checkpoints.files import WEIGHT_NAMES, weight_names
from sih.checkpoints.schedule import PYTHIA_STEPS, revision

REPORTED = Path(__file__).with_name("reported.csv")
_ALSO_NEEDED = ("config.json", "tokenizer.json")


@dataclass(frozen=True)
class HubFile:
    """A file of one revision. `sha256` is known for LFS files, `git_sha1` (of the git blob) for all."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True)
class Revision:
    """One commit's files; `step` is None for main."""

    step: int | None
    commit: str
    files: tuple[HubFile, ...]

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
        """The files that a measurement needs: weights, the index of sharded weights, config and tokenizer."""
        weights = self.weights
        index = f"{'model.safetensors' if self.format == 'safetensors' else 'pytorch_model.bin'}.index.json"
        others = {*_ALSO_NEEDED, index} if len(weights) > 1 else set(_ALSO_NEEDED)
        return weights + [f for f in self.files if f.name in others]

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

    `suspect` gives the reason for each convicted step, and `explained` a public report about it, if there is one.
    `revisions` are all that were read; `unread` says why the others were not, and those are never convicted.
    """

    repo: str
    revisions: dict[int, Revision]
    main: Revision | None
    unread: dict[int, str] = field(default_factory=dict)
    suspect: dict[int, str] = field(default_factory=dict)
    sharing: dict[int, list[str]] = field(default_factory=dict)  # the other labels that have a suspect step's files
    explained: dict[int, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)  # reports on this repository that no hash confirms

    @property
    def steps(self) -> list[int]:
        """All steps that are offered."""
        return sorted([*self.revisions, *self.unread])

    @property
    def missing(self) -> list[int]:
        """Steps of Pythia's schedule that the repository does not offer."""
        return [s for s in PYTHIA_STEPS if s not in set(self.steps)]

    @property
    def main_is_last(self) -> bool | None:
        """Whether main has the last step's weights; None when that cannot be known."""
        last = self.revisions.get(max(self.steps))
        if last is None or self.main is None or not self.main.weights:
            return None
        return self.main.same_weights(last)


def examine(
    repo: str, revisions: dict[int, Revision], main: Revision | None, unread: dict[int, str] | None = None
) -> Audit:
    """Convict every step whose weights also appear under another label, in any format.

    A file that two labels share is wrong under at least one of them, and a hash cannot say which. Two cases are
    expected: step 0 shares with step 1, and the last step with main. But main cannot have the initial weights, since
    it is where training ends. All other steps that share a file are convicted, and so are revisions without weights.
    """
    audit = Audit(repo, revisions, main, unread or {})
    last = max(audit.steps)
    owners: dict[str, set[int]] = {}
    for step, r in revisions.items():
        for sha256 in _hashes(r):
            owners.setdefault(sha256, set()).add(step)
    start = {0, 1} if {0, 1} <= revisions.keys() and revisions[0].same_weights(revisions[1]) else set()
    end = {last} if audit.main_is_last else set()
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
        labels = [revision(other.step) if other.step is not None else "main" for other in others]
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
            if row["repo"] != audit.repo:
                continue
            reported = _listed(row["steps"])
            convicted = [s for s in audit.suspect if s in reported]
            for step in convicted:
                audit.explained[step] = row["source"]
            if not convicted and reported & set(audit.steps):
                audit.unseen.append(f"steps {row['steps']}: {row['report']} ({row['source']})")


def _listed(steps: str) -> set[int]:
    """0-512 1000 -> the steps of Pythia's schedule from 0 to 512, and 1000."""
    found = set()
    for part in steps.split():
        low, _, high = part.partition("-")
        found |= {s for s in PYTHIA_STEPS if int(low) <= s <= int(high or low)}
    return found
