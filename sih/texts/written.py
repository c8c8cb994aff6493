"""Drawn inputs as text, for the files that are kept beside the results."""

import csv
import io
import json
from collections.abc import Iterable
from typing import Any


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_text(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV table with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
