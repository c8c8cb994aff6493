"""How a series names its checkpoints: one regular expression over branches and tags, or over folders."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sih.errors import SihError


@dataclass(frozen=True)
class Naming:
    """`pattern` must match a whole name; its group `step` is the optimiser step.

    Args:
        seed: where one place holds several runs, the pattern has a group `seed`; this is the wanted run's.

    Raises:
        SihError: not a regular expression, or one without the group `step`.
    """

    pattern: str
    seed: str | None = None

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise SihError(f"model.revisions={self.pattern}: no regular expression ({error})") from None
        if "step" not in groups:
            raise SihError(
                f"model.revisions={self.pattern}: no group named step; expected one, as in 'checkpoint-(?P<step>\\d+)'"
            )

    def step_of(self, name: str) -> int | None:
        """The step of a name, None when it names no checkpoint of this run."""
        found = re.fullmatch(self.pattern, name)
        if found is None or ("seed" in found.groupdict() and found["seed"] != self.seed):
            return None
        if not found["step"].isdecimal():
            raise SihError(f"model.revisions={self.pattern}: {name} has the step {found['step']!r}; expected a number")
        return int(found["step"])

    def by_step(self, names: Mapping[str, object], where: str) -> dict[int, str]:
        """The name of each step, in increasing order of steps; empty where no name matches.

        Args:
            names: what each name stands for, such as its commit; two names of one step must stand for the same.
            where: begins the error's message.

        Raises:
            SihError: two names of one step.
        """
        found: dict[int, str] = {}
        for name in sorted(names):
            step = self.step_of(name)
            if step is None:
                continue
            if step in found and names[found[step]] != names[name]:
                raise SihError(
                    f"{where}: {found[step]} and {name} are both step {step}; choose between them with a narrower "
                    "model.revisions, or with a group named seed and model.seed"
                )
            found.setdefault(step, name)
        return dict(sorted(found.items()))

    def none_of(self, names: Iterable[str], of: str) -> str:
        """What to say when no name matches: "none of the 3 branches is named ...", with some that are there."""
        there = sorted(names)
        some = f" such as {', '.join(there[:3])}" if there else ""
        seed = f" and seed {self.seed}" if "seed" in re.compile(self.pattern).groupindex else ""
        return f"none of its {len(there)} {of}{some} matches model.revisions={self.pattern}{seed}"


# Checkpoints that sih trains itself.
OWN = Naming(r"step(?P<step>\d+)")
