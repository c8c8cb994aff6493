"""What a Hub repository serves under each step's label, judged by the sha256 of its weight files.

Two steps of one training run never have the same weights, since every step changes every weight. Steps 0 and 1
are the exception: the first learning rate is 0. So a weight file that stands under two labels convicts them.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from sih.checkpoints import weight_names
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
    def wanted(self) -> list[HubFile]:
        """What a measurement needs: the weights, the index of sharded ones, config and tokenizer."""
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
    """`suspect` gives the reason for each convicted step; `explained` a public report of it, where there is one."""

    repo: str
    revisions: dict[int, Revision]
    main: Revision | None
    suspect: dict[int, str] = field(default_factory=dict)
    sharing: dict[int, list[str]] = field(default_factory=dict)  # the other labels that a suspect's files stand under
    explained: dict[int, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)  # reports on this repository that no hash bears out

    @property
    def missing(self) -> list[int]:
        """Steps of Pythia's schedule that the repository does not offer."""
        return [s for s in PYTHIA_STEPS if s not in self.revisions]

    @property
    def main_is_last(self) -> bool | None:
        """Whether main has the last step's weights; None when there is no main, or no weights in it."""
        if self.main is None or not self.main.weights:
            return None
        return _hashes(self.main) == _hashes(self.revisions[max(self.revisions)])


def examine(repo: str, revisions: dict[int, Revision], main: Revision | None) -> Audit:
    """Convict every step whose weights stand under another label too.

    A file that two labels share is wrong under at least one of them, and a hash cannot say which. Two labels
    are borne out by a second one: step 0 with step 1, and the last step when main has its weights too; but the
    initial weights cannot be main's, which is where training ends. All others that share a file are convicted,
    and so are revisions without weights.
    """
    audit = Audit(repo, revisions, main)
    last = max(revisions)
    whole = {step: _hashes(r) for step, r in revisions.items()}
    # Where main has the last step's weights it stands for the same label, not for another one.
    whole_main = _hashes(main) if main is not None and not audit.main_is_last else frozenset()
    owners: dict[str, list[int]] = {}
    for step, hashes in whole.items():
        for sha256 in hashes:
            owners.setdefault(sha256, []).append(step)
    start = {0, 1} if 0 in whole and whole[0] == whole.get(1) else set()
    end = {last} if audit.main_is_last else set()
    for step, revision_ in revisions.items():
        if not revision_.weights:
            audit.suspect[step] = "no weights" if revision_.files else "the Hub does not list its files"
            continue
        if any(f.sha256 is None for f in revision_.weights):
            audit.suspect[step] = "the Hub knows no sha256 of its weights"
            continue
        sharing = sorted({other for sha256 in whole[step] for other in owners[sha256]} - {step})
        labels = [revision(other) for other in sharing]
        if whole[step] & whole_main and step != last:
            labels.append("main")
        initial = step in start and not end & set(sharing) and "main" not in labels
        final = step in end and not start & set(sharing)
        if not labels or initial or final:
            continue
        others = [whole[other] for other in sharing] + [whole_main] * ("main" in labels)
        same = all(other == whole[step] for other in others)
        audit.sharing[step] = labels
        audit.suspect[step] = f"{'the same weights as' if same else 'shares a weight file with'} {_some(labels)}"
    _explain(audit)
    return audit


def _hashes(revision_: Revision) -> frozenset[str]:
    return frozenset(f.sha256 for f in revision_.weights if f.sha256)


def _some(labels: list[str]) -> str:
    shown = labels if len(labels) <= 3 else [*labels[:2], f"{len(labels) - 2} others"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _explain(audit: Audit) -> None:
    """Public reports beside the convictions; a report alone convicts nothing."""
    with open(REPORTED, encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            if row["repo"] != audit.repo:
                continue
            reported = _listed(row["steps"])
            convicted = [s for s in audit.suspect if s in reported]
            for step in convicted:
                audit.explained[step] = row["source"]
            if not convicted and reported & set(audit.revisions):
                audit.unseen.append(f"steps {row['steps']}: {row['report']} ({row['source']})")


def _listed(steps: str) -> set[int]:
    """0-512 1000 -> the steps of Pythia's schedule from 0 to 512, and 1000."""
    found = set()
    for part in steps.split():
        low, _, high = part.partition("-")
        found |= {s for s in PYTHIA_STEPS if int(low) <= s <= int(high or low)}
    return found
