"""What an analysis looks like on disk: emergence.json, emergence.csv and emergence_pairs.csv."""

import json
import math
from collections.abc import Callable
from typing import Any

from sih.texts.written import csv_text

_BY_STEP = ("value", "low", "high", "null")  # lists over checkpoints, too long for one field of a CSV
JSON, SERIES, PAIRS = "emergence.json", "emergence.csv", "emergence_pairs.csv"


def written(result: dict[str, Any]) -> dict[str, str]:
    """The texts of a result's files, by name."""
    found = {JSON: json.dumps(finite(result), indent=2) + "\n"}
    for name, rows in ((SERIES, result["series"]), (PAIRS, result["pairs"])):
        fields = list(dict.fromkeys(key for row in rows for key in row if key not in _BY_STEP))
        found[name] = csv_text(fields, [[_cell(row.get(key)) for key in fields] for row in rows])
    return found


def write(result: dict[str, Any], write_text: Callable[[str, str], Any]) -> None:
    """Write all three through `write_text(name, text)`."""
    for name, text in written(result).items():
        write_text(name, text)


def finite(value: Any) -> Any:
    """The value with NaN and infinity as None, since JSON has neither."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value
