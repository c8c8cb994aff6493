"""A property that is computed once, by whichever thread asks first."""

from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class once(Generic[T]):
    """Like functools.cached_property, but other threads wait while one computes the value."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self._name, self.__doc__ = compute, compute.__name__, compute.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> "once[T]": ...
    @overload
    def __get__(self, owner: object, kind: type) -> T: ...

    def __get__(self, owner: object | None, kind: type) -> "once[T] | T":
        if owner is None:
            return self
        kept = owner.__dict__
        with kept.setdefault(f"_once_{self._name}", RLock()):
            if self._name not in kept:
                kept[self._name] = self._compute(owner)
            return kept[self._name]

    def __set_name__(self, kind: type, name: str) -> None:
        self._name = name
