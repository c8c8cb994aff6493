"""The configured source of checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sih.checkpoints import Source
from sih.checkpoints.files import Sha256, cache_folder
from sih.checkpoints.local import LocalFolder
from sih.checkpoints.tiny import TinySeries, digest, recipe
from sih.config import CheckpointsConfig, ModelConfig

if TYPE_CHECKING:
    from sih.checkpoints.hub import Audited, HubModel


def identity(model: ModelConfig) -> str:
    """Where the weights come from, as part of the results' keys; each manifest says which weights they were."""
    if model.source == "tiny":
        assert model.train is not None  # conf/model/tiny.yaml
        return f"tiny recipe {digest(recipe(model.train, model.seed))}"
    if model.source == "local":
        return f"folder {Path(str(model.path)).resolve()}"
    return f"hub {repository(model)}"


def repository(model: ModelConfig) -> str:
    """The Hub repository, with its PolyPythias seed: EleutherAI/pythia-70m-seed3."""
    return f"{model.repo}-seed{model.seed}" if model.seed else str(model.repo)


def open_source(
    model: ModelConfig,
    options: CheckpointsConfig,
    hashes: Sha256,
    trained: Callable[[int, int, float], None],
    audited: "Audited",
) -> Source:
    """The configured checkpoints; trains the embedded series when it is not in the cache yet.

    Args:
        hashes: where sha256s are remembered for the whole sweep.
        trained: called with the progress of training the embedded series, as (step, steps, loss).
        audited: called with the progress of auditing a Hub repository.

    Raises:
        SihError: there are no checkpoints, or they cannot be reached.
    """
    if model.source == "tiny":
        assert model.train is not None
        return TinySeries(model.train, model.seed, cache_folder(), trained, hashes)
    if model.source == "local":
        return LocalFolder(Path(str(model.path)), hashes)
    return hub_model(model, options, hashes, audited)


def hub_model(model: ModelConfig, options: CheckpointsConfig, hashes: Sha256, audited: "Audited") -> "HubModel":
    """The configured repository. Raises SihError when it cannot be read."""
    from sih.checkpoints.hub import HubModel  # the Hub's client takes a second, so not for local series

    return HubModel(repository(model), cache_folder(), options, hashes, audited)
