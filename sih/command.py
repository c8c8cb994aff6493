"""What all commands share: Hydra composes conf/, one line says what is wrong, the exit code says how it went."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sih import CONF
from sih.config import Config, TrainConfig, check
from sih.errors import SihError

# The options that the commands which only read a run use.
READING = ("run", "name", "output", "model", "steps", "axis", "emergence", "suggest")


def command(run: Callable[[Config], int], reads: Sequence[str] | None = None) -> Callable[[], None]:
    """A command-line entry point: Hydra composes conf/, a SihError ends it in one line with exit code 2.

    With -m it runs once for each combination, and ends with the largest exit code of all.

    Args:
        reads: the top-level options that the command uses; any other is refused. None: all but run=.
    """
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def composed_once(composed: DictConfig) -> None:
        codes.append(_code(run, composed))

    def main() -> None:
        codes.clear()
        sys.argv[1:] = [_quoted(word) for word in sys.argv[1:]]
        try:
            check_words(sys.argv[1:], reads)
        except SihError as error:
            raise SystemExit(_say(str(error))) from None
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
    except OSError as error:  # other disk errors, such as in writing figures or W&B's own files
        return _say(f"{error}; what was measured is kept")
    except KeyboardInterrupt:
        raise SystemExit(_say("stopped; what was measured is kept, the same command continues it", 130)) from None


def _say(message: str, code: int = 2) -> int:
    print(f"sih: {message}", file=sys.stderr)
    return code


def _quoted(word: str) -> str:
    """A regular expression, or a name with {seed}, in quotes: its signs have other meanings in Hydra's grammar."""
    found = re.fullmatch(r"(\+*model\.(?:revisions|repo))=([^'\"].*)", word, re.DOTALL)
    return word if found is None else "{}='{}'".format(found[1], found[2].replace("'", r"\'"))


def check_words(words: Sequence[str], reads: Sequence[str] | None) -> None:
    """Refuse options that do not exist, naming the nearest ones, and options that the command does not use.

    Raises:
        SihError: for the first such option.
    """
    listed = [m[1].split(",") for word in words if (m := re.fullmatch(r"scores=\[?([^\]]*)\]?", word))]
    chosen = [[name.strip() for name in names] for names in listed]
    known = sorted(f.stem for f in (CONF / "scores").glob("*.yaml"))
    for name in (name for names in chosen for name in names if name):
        if sum(names.count(name) for names in chosen) > 1:
            raise SihError(f"scores: {name} is named twice; expected each score once")
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "a score of your own is named with +scores.NAME._target_="
            raise SihError(f"scores=[{name}]: no such score; {hint} There are {', '.join(known)}")
    for word in words:
        found = re.fullmatch(r"([+~]*)([\w./@-]+)=.*", word, re.DOTALL)
        if not found or word.startswith("-"):
            continue
        sign, key = found[1], found[2].split("@")[0].replace("/", ".")
        top = key.split(".")[0]
        if top == "hydra":
            continue
        if "+" in sign and (mine := re.fullmatch(r"scores\.(\w+)\._target_", key)) and mine[1] in known:
            raise SihError(f"{key}: sih has a score of this name; choose another name for yours")
        if not sign and not _exists(key):
            close = get_close_matches(key, _options(), 3)
            hint = f"; did you mean {' or '.join(close)}?" if close else "; --help lists the common ones"
            raise SihError(f"{key}: no such option{hint}")
        if not sign and top == "scores" and chosen and "." in key and key.split(".")[1] not in chosen[-1]:
            raise SihError(f"{key}: {key.split('.')[1]} is not among the chosen scores, {', '.join(chosen[-1])}")
        if reads is not None and top not in reads:
            raise SihError(
                f"{key}: this command does not use it; it reads {', '.join(reads)}. "
                "Choose what is measured with python -m sih.sweep"
            )
        if reads is None and top == "run":
            raise SihError("run= names a run to read; a sweep measures into output/name, see name= and output=")


def _exists(key: str) -> bool:
    """Whether an option has this name; inside a dictionary any name is allowed."""
    known = _options()
    return key in known or any(known.get(key[: m.start()]) for m in re.finditer(r"\.", key))


@cache
def _options() -> dict[str, bool]:
    """Every option in the schema and conf/scores/, and whether it is a dictionary that takes any keys."""
    found = dict(_fields(Config, ""))
    found["scores"] = False
    for file in sorted((CONF / "scores").glob("*.yaml")):
        for score, options in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            found |= {f"scores.{score}.{option}": isinstance(v, dict | str) for option, v in options.items()}
    return found


def _fields(schema: Any, before: str) -> Iterator[tuple[str, bool]]:
    for f in fields(schema):
        yield f"{before}{f.name}", "dict[" in str(f.type)
        inner = TrainConfig if f.name == "train" else f.default_factory  # the default of `train` is none
        if is_dataclass(inner):
            yield from _fields(inner, f"{before}{f.name}.")
