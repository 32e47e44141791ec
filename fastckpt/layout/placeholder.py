"""What stands for an object of a class that nobody registered: its name and content, and nothing is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
    """An object of a class that is not known here. Saved again, it is what it was.

    One that comes from a pickle is equal to itself alone; the others to those of the same content.

    Attributes:
        kind: ``"enum"``, ``"namedtuple"``, ``"dataclass"``, ``"subclass"`` (of a tensor) or ``"registered"``;
            ``"object"`` if it comes from a pickle.
        name: The class, or the name it was registered under.
        content: ``{"name": ..., "value": ...}`` of an enum's member; the fields by name;
            of a tensor's subclass its plain ``tensors`` and what else it is made of;
            of a registered class what its ``to_plain`` gave; of an object what it is made of: ``args``, ``state``,
            ``items`` and ``pairs``.
        tensors: All tensors in an object by their names inside of it: those of a module as in its ``state_dict()``.

    Example:
        >>> fastckpt.Placeholder("enum", "my.Color", {"name": "RED", "value": 1}).content["value"]
        1
    """

    kind: str
    name: str
    content: Any
    tensors: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placeholder):
            return NotImplemented
        if self.kind == "object":
            # Whether two objects of an unknown class are equal nobody knows; that they are two is known.
            return self is other
        return (self.kind, self.name, self.content) == (other.kind, other.name, other.content)

    def __hash__(self) -> int:
        if self.kind == "object":
            return object.__hash__(self)
        content = tuple(self.content.values()) if isinstance(self.content, dict) else self.content
        try:
            return hash((self.kind, self.name, content))
        except TypeError:  # The object itself could be a key, for all that it holds a list.
            return hash((self.kind, self.name))

    @property
    def args(self) -> tuple[Any, ...]:
        """What the class, or a function, would be called with to make an object."""
        return self._part("args", ())

    @property
    def state(self) -> Any:
        """What would be set in an object: mostly a dict of attributes."""
        return self._part("state", None)

    @property
    def items(self) -> list[Any]:
        """What would be appended to an object."""
        return self._part("items", [])

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """Keys and values that would be put into an object."""
        return self._part("pairs", [])

    @property
    def same_as(self) -> str | None:
        """The place of an object before that this one is, too; then nothing else is in it."""
        return self._part("same", None)

    def _part(self, key: str, default: T) -> T:
        return self.content.get(key, default) if isinstance(self.content, dict) else default
