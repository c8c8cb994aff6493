"""How moments of training are written: in steps, or in training tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sih.checkpoints.schedule import readable_tokens


@dataclass(frozen=True)
class TimeAxis:
    """`tokens_per_step`: training tokens of a step where time is shown in tokens; None where it is shown in steps."""

    tokens_per_step: float | None = None

    @property
    def words(self) -> str:
        """What the axis shows."""
        return "training step" if self.tokens_per_step is None else "training tokens"

    def number(self, step: float) -> str:
        """A moment without its unit: "1,000", or "2.1B" tokens."""
        return f"{step:,.0f}" if self.tokens_per_step is None else readable_tokens(step * self.tokens_per_step, 3)

    def moment(self, step: float) -> str:
        """A moment with its unit: "step 1,000", or "2.1B tokens"."""
        return f"step {self.number(step)}" if self.tokens_per_step is None else f"{self.number(step)} tokens"


STEPS = TimeAxis()


def axis_of(result: Mapping[str, Any]) -> TimeAxis:
    """The axis on which an answer is shown: its `axis`, steps where it has none, and its `tokens_per_step`."""
    return TimeAxis(result["tokens_per_step"]) if result.get("axis") == "tokens" else STEPS
