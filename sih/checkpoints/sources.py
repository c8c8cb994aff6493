"""The configured source of checkpoints."""

from collections.abc import Callable
from pathlib import Path

from sih.checkpoints import Sha256, Source
from sih.checkpoints.hub import Audited, HubModel
from sih.checkpoints.local import LocalFolder
from sih.config import Config
from sih.datafiles import cache_folder


def identity(config: Config) -> str:
    """Where the weights come from, for the config hash; which weights they were is in each manifest."""
    model = config.model
    if model.source == "tiny":
        from sih.checkpoints.tiny import digest, recipe  # torch and transformers take seconds

        assert model.train is not None  # conf/model/tiny.yaml
        return f"tiny recipe {digest(recipe(model.train, model.seed))}"
    if model.source == "local":
        return f"folder {Path(str(model.path)).resolve()}"
    return f"hub {repository(config)}"


def repository(config: Config) -> str:
    """The Hub repository, with its PolyPythias seed: EleutherAI/pythia-70m-seed3."""
    return f"{config.model.repo}-seed{config.model.seed}" if config.model.seed else str(config.model.repo)


def open_source(config: Config, hashes: Sha256, trained: Callable[[int, int, float], None], audited: Audited) -> Source:
    """The configured checkpoints; trains the embedded series when it is not in the cache yet.

    Args:
        hashes: where sha256s are remembered for the whole sweep.
        trained: told how far the training of the embedded series is, as (step, steps, loss).
        audited: told how far the audit of a Hub repository is.

    Raises:
        SihError: nothing there, or it cannot be reached.
    """
    model = config.model
    if model.source == "tiny":
        from sih.checkpoints.tiny import TinySeries

        assert model.train is not None
        return TinySeries(model.train, model.seed, cache_folder(), trained, hashes)
    if model.source == "local":
        return LocalFolder(Path(str(model.path)), hashes)
    return hub_model(config, hashes, audited)


def hub_model(config: Config, hashes: Sha256, audited: Audited) -> HubModel:
    """The configured repository. Raises SihError when it cannot be read."""
    return HubModel(repository(config), cache_folder(), config.checkpoints, hashes, audited)
