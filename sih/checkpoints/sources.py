"""The configured source of checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sih.checkpoints import Source
from sih.checkpoints.files import Sha256, cache_folder
from sih.checkpoints.local import LocalFolder
from sih.checkpoints.naming import Naming
from sih.checkpoints.schedule import grid_of
from sih.checkpoints.tiny import TinySeries, digest, recipe
from sih.config import CheckpointsConfig, ModelConfig

if TYPE_CHECKING:
    from sih.checkpoints.hub import Audited, HubModel


def identity(model: ModelConfig) -> str:
    """Where the weights come from, as part of the results' keys; each manifest says which weights they were."""
    if model.source == "tiny":
        assert model.train is not None  # conf/model/tiny.yaml
        return f"tiny recipe {digest(recipe(model.train, model.seed))}"
    run = f" seed {_naming(model).seed}" if "(?P<seed>" in model.revisions else ""
    if model.source == "local":
        return f"folder {Path(str(model.path)).resolve()}{run}"
    return f"hub {' '.join(repositories(model))}{run}"


def repositories(model: ModelConfig) -> list[str]:
    """The Hub repositories, the main one first: {seed} stands for the seed's name.

    Where neither the repository's name nor the pattern of its revisions has a place for the seed, the repository of
    another seed than 0 ends in -seed{N}, as PolyPythias do: EleutherAI/pythia-70m-seed3.
    """
    found = [str(name).replace("{seed}", _seed_name(model)) for name in (model.repo, *(model.more_repos or []))]
    if model.seed and "{seed}" not in str(model.repo) and "(?P<seed>" not in model.revisions:
        return [f"{name}-seed{model.seed}" for name in found]
    return found


def _naming(model: ModelConfig) -> Naming:
    return Naming(model.revisions, _seed_name(model))


def _seed_name(model: ModelConfig) -> str:
    return (model.seed_names or {}).get(model.seed, str(model.seed))


def open_source(
    model: ModelConfig,
    options: CheckpointsConfig,
    hashes: Sha256,
    trained: Callable[[int, int, float], None],
    audited: "Audited",
    settled_only: bool = False,
) -> Source:
    """The configured checkpoints; trains the embedded series when it is not in the cache yet.

    Args:
        hashes: where sha256s are remembered for the whole sweep.
        trained: called with the progress of training the embedded series, as (step, steps, loss).
        audited: called with the progress of auditing a Hub repository.
        settled_only: of a local folder, leave out checkpoints that may still be written.

    Raises:
        SihError: there are no checkpoints, or they cannot be reached.
    """
    if model.source == "tiny":
        assert model.train is not None
        return TinySeries(model.train, model.seed, cache_folder(), trained, hashes)
    if model.source == "local":
        return local_folder(model, hashes, settled_only)
    return hub_model(model, options, hashes, audited)


def local_folder(model: ModelConfig, hashes: Sha256, settled_only: bool = False) -> LocalFolder:
    """The configured folder; see LocalFolder."""
    return LocalFolder(Path(str(model.path)), hashes, _naming(model), settled_only)


def hub_model(model: ModelConfig, options: CheckpointsConfig, hashes: Sha256, audited: "Audited") -> "HubModel":
    """The configured repository. Raises SihError when it cannot be read."""
    from sih.checkpoints.hub import HubModel  # the Hub's client takes a second, so not for local series
    from sih.checkpoints.revisions import HubSeries

    series = HubSeries(tuple(repositories(model)), _naming(model), model.main, tuple(grid_of(model.grid)))
    return HubModel(series, cache_folder(), options, hashes, audited)
