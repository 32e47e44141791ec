"""Facts of many things by their names, none of which is there before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class FactsByName(Mapping[str, T]):
    """A mapping to facts that are made when they are asked for: all at once they would take more than the file.

    Args:
        things: What the facts are about, by name.
        make: Makes the facts about one of them.
    """

    def __init__(self, things: Mapping[str, Any], make: Callable[[Any], T]) -> None:
        self._things = things
        self._make = make

    def __getitem__(self, name: str) -> T:
        return self._make(self._things[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
