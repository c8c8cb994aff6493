"""Where a configuration's results lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sih.checkpoints.sources import identity
from sih.config import Config, config_hash, measurement, model_name
from sih.datafiles import data_files, sha256_of
from sih.errors import SihError
from sih.store import Store


@dataclass(frozen=True)
class Results:
    """`measured` is what the config hash is of; `files` the data files by role."""

    store: Store
    measured: dict[str, Any]
    files: dict[str, Path]
    data_sha256: dict[str, str]


def locate(config: Config) -> Results:
    """The place of this configuration's results; data files are fetched when they are not here."""
    files = data_files(config)
    data_sha256 = {role: sha256_of(path) for role, path in sorted(files.items())}
    measured = measurement(config, identity(config), data_sha256)
    root = Path(config.output) / model_name(config.model) / config_hash(measured)
    return Results(Store(root), measured, files, data_sha256)


def find(config: Config) -> Store:
    """The store of this configuration, with at least one result in it. Raises SihError otherwise."""
    store = locate(config).store
    if not store.steps():
        others = sorted(p.name for p in store.root.parent.glob("*") if Store(p).steps())
        hint = f"; other configurations there: {', '.join(others)}" if others else ""
        raise SihError(
            f"{store.root}: nothing measured with this configuration{hint}. "
            "Run python -m sih.sweep with the same options first"
        )
    return store
