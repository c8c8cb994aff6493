"""Scores from the configuration: each one's `_target_` names a class, in sih or in a package of your own."""

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from sih.errors import SihError
from sih.scores import checked


def made(chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The chosen scores by name.

    Raises:
        SihError: a class that cannot be imported, an option that it does not have, or a missing part of the contract.
    """
    return {name: _one(name, dict(options)) for name, options in chosen.items()}


def _one(name: str, options: dict[str, Any]) -> Any:
    target = options.pop("_target_", None)
    if not target:
        raise SihError(f"scores.{name} has no _target_; expected the class of a score, such as my_package.MyScore")
    cls = _class(name, str(target))
    known = {f.name: f for f in fields(cls)}
    for option in options:
        if option not in known:
            close = get_close_matches(option, known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; expected {', '.join(known) or 'none'}"
            raise SihError(f"scores.{name}.{option}: no such option{hint}")
    try:
        score = cls(**options)
    except TypeError as error:  # an option without a default that was not given
        raise SihError(f"scores.{name}: {error}") from None
    return checked(name, score)


def _class(name: str, target: str) -> Any:
    module, _, attribute = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SihError(
            f"scores.{name}._target_={target} cannot be imported ({error}); expected a class in a package that is "
            "installed, or that lies in the folder of the command"
        ) from None
    if not is_dataclass(cls):
        raise SihError(f"scores.{name}._target_={target} is not a dataclass; a score's options are its fields")
    return cls
