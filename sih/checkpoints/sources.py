"""The configured source of checkpoints."""

from pathlib import Path

from sih.checkpoints import Source
from sih.checkpoints.hub import HubModel
from sih.checkpoints.local import LocalFolder
from sih.checkpoints.tiny import Progress, TinySeries, digest, recipe
from sih.config import Config
from sih.datafiles import cache_folder


def identity(config: Config) -> str:
    """Where the weights come from, for the config hash; which weights they were is in each manifest."""
    model = config.model
    if model.source == "tiny":
        assert model.train is not None  # conf/model/tiny.yaml
        return f"tiny recipe {digest(recipe(model.train, model.seed))}"
    if model.source == "local":
        return f"folder {Path(str(model.path)).resolve()}"
    return f"hub {repository(config)}"


def repository(config: Config) -> str:
    """The Hub repository, with its PolyPythias seed: EleutherAI/pythia-70m-seed3."""
    return f"{config.model.repo}-seed{config.model.seed}" if config.model.seed else str(config.model.repo)


def open_source(config: Config, progress: Progress) -> Source:
    """The configured checkpoints; trains the embedded series when it is not in the cache yet.

    Raises:
        SihError: nothing there, or it cannot be reached.
    """
    model = config.model
    if model.source == "tiny":
        assert model.train is not None
        return TinySeries(model.train, model.seed, cache_folder(), progress)
    if model.source == "local":
        return LocalFolder(Path(str(model.path)))
    return HubModel(repository(config), cache_folder() / "hub")
