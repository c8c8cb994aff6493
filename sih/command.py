"""What all commands share: Hydra composes conf/, one line says what is wrong, the exit code says how it went."""

import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sih import CONF
from sih.config import Config, check
from sih.errors import SihError


def command(run: Callable[[Config], int]) -> Callable[[], None]:
    """A command-line entry point: Hydra composes conf/, a SihError ends it in one line with exit code 2.

    With -m it runs once for each combination, and ends with the largest exit code of all.
    """
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def composed_once(composed: DictConfig) -> None:
        codes.append(_code(run, composed))

    def main() -> None:
        codes.clear()
        composed_once()
        raise SystemExit(max(codes, default=0))

    return main


def _code(run: Callable[[Config], int], composed: DictConfig) -> int:
    try:
        config: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
        check(config)
        return run(config)
    except OmegaConfBaseException as error:
        return _say(f"configuration: {str(error).splitlines()[0]}")
    except SihError as error:
        return _say(str(error))
    except OSError as error:  # whatever else the disk refuses: figures, W&B's own files
        return _say(f"{error}; what was measured is kept")
    except KeyboardInterrupt:
        raise SystemExit(_say("stopped; what was measured is kept, the same command goes on from here", 130)) from None


def _say(message: str, code: int = 2) -> int:
    print(f"sih: {message}", file=sys.stderr)
    return code
