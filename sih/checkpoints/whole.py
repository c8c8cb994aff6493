"""Whether a checkpoint folder has been written to its end, told from its files without loading them."""

import json
import re
import time
import zipfile
from pathlib import Path

from sih.checkpoints.files import tokenizer_files, weight_names
from sih.errors import CheckpointError

_SETTLED = 2.0  # seconds without a change


def unfinished(folder: Path) -> str | None:
    """What shows that the folder is half-written; None when nothing does.

    Looked at: config.json and the index of sharded weights are whole JSON, every shard is there, a safetensors file
    has the length that its header promises, and a .bin file in PyTorch's zip format has its directory, which is
    written last. Older .bin files have no such mark. What a folder lacks altogether is told when it is loaded.
    """
    names = {f.name for f in folder.iterdir()}
    for name in sorted(n for n in names if n == "config.json" or n.endswith(".index.json") or n == "tokenizer.json"):
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError:
            return f"{name} is no whole JSON"
    weights = weight_names(names)
    for name in weights:
        if reason := _unfinished_file(folder / name):
            return f"{name} {reason}"
    promised = {shard for name in weights for shard in _all_shards(name)}
    if missing := sorted(promised - names):
        return f"{missing[0]} is missing"
    return None


def unsettled(folder: Path) -> str | None:
    """Why a checkpoint of a running training may not be there as a whole: something is unfinished or missing, or a
    file has changed in the last two seconds, since what comes last differs from trainer to trainer. None if it is."""
    try:
        names = {f.name for f in folder.iterdir()}
        tokenizer_files(folder)
        if "config.json" not in names:
            return f"{folder}: no config.json"
        if not weight_names(names):
            return f"{folder}: no weights"
        if reason := unfinished(folder):
            return f"{folder}: {reason}"
        changed = time.time() - max((folder / name).stat().st_mtime for name in names) <= _SETTLED
        return f"{folder}: its files still change" if changed else None
    except CheckpointError as error:  # no tokenizer
        return str(error)
    except FileNotFoundError:  # renamed or removed meanwhile
        return f"{folder}: a file has just been removed"


def _all_shards(name: str) -> list[str]:
    """model-00001-of-00003.safetensors -> the names of all three."""
    found = re.fullmatch(r"(.*-)(\d+)-of-(\d+)(\.\w+)", name)
    if found is None:
        return [name]
    before, number, count, kind = found.groups()
    return [f"{before}{n:0{len(number)}}-of-{count}{kind}" for n in range(1, int(count) + 1)]


def _unfinished_file(file: Path) -> str | None:
    size = file.stat().st_size
    if file.suffix == ".safetensors":
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = handle.read(min(length, size))
        if size < 8 or len(header) < length:
            return "ends before its header does"
        try:
            tensors = [t for name, t in json.loads(header).items() if name != "__metadata__"]
            promised = 8 + length + max((t["data_offsets"][1] for t in tensors), default=0)
        except (ValueError, KeyError, TypeError):
            return "has no readable header"
        return None if size >= promised else f"has {size:,} of {promised:,} bytes"
    with open(file, "rb") as handle:
        zipped = handle.read(4) == b"PK\3\4"
    if size == 0 or (zipped and not zipfile.is_zipfile(file)):
        return "ends before its directory"
    return None
