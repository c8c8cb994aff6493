"""A score that only takes time, so that a checkpoint lasts as long as a test needs, on any machine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from sih.scores import Drawn, Given, Series


@dataclass(frozen=True)
class Slow:
    seconds: float = 0.0  # of each checkpoint

    version: ClassVar[int] = 1
    shown: ClassVar[Sequence[str]] = ("seconds",)
    tables: ClassVar[Mapping[str, Sequence[str]]] = {"slow": ["document"]}

    def draw(self, given: Given) -> Drawn:
        return Drawn(None)

    def measure(self, model: Any, inputs: None, batch_tokens: int) -> dict[str, pa.Table]:
        time.sleep(self.seconds)
        return {"slow": pa.table({"document": ["a"]})}

    def series(self, facts: Mapping[str, Any]) -> list[Series]:
        return []
