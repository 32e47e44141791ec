"""Named values: what a tree can hold besides its own few types.

A named value is a name and a payload of tree nodes. The names without a dot
are those of the format: Python's other plain values, arrays, and objects that
are kept as they are. Names with a dot are those that a program registered for
its own types. What a payload looks like is checked before anybody uses it;
nothing here is ever imported or called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor: row ``entry`` of the entry table."""

    entry: int


@dataclass(frozen=True, slots=True)
class SizeRef:
    """A ``torch.Size``."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NamedRef:
    """A named value: ``NamedRef("range", (0, 10, 2))``. Which payload a name has, `SHAPES` says."""

    name: str
    payload: Any


ANY: Final = object
"""Any node."""
_FIELDS: Final = {str: ANY}
_PAIRS: Final = [(ANY, ANY)]
_MAYBE_INT: Final = frozenset((int, type(None)))
_MAYBE_STR: Final = frozenset((str, type(None)))

SHAPES: Final[dict[str, object]] = {
    "object": (str, _FIELDS, int, int),
    "array": (TensorRef, str, SizeRef, bool),
    "scalar": (str, bytes),
    "set": [ANY],
    "frozenset": [ANY],
    "deque": ([ANY], _MAYBE_INT),
    "dict": _PAIRS,
    "counter": _PAIRS,
    "defaultdict": (_PAIRS, _MAYBE_STR),
    "bytearray": bytes,
    "namespace": (str, _FIELDS),
    "path": (str, str),
    "datetime": str,
    "date": str,
    "time": str,
    "timedelta": (int, int, int),
    "range": (int, int, int),
    "slice": (ANY, ANY, ANY),
    "fraction": (int, int),
    "decimal": str,
    "enum": (str, str, ANY),
    "namedtuple": (str, _FIELDS),
    "dataclass": (str, _FIELDS),
    "memory_format": str,
    "layout": str,
    "generator": (str, TensorRef),
}
"""The payload of every name of the format: a type; types one of which it is; a tuple of parts; a list of parts
of one shape; a dict from str."""


def is_registered(name: str) -> bool:
    """Whether a name is one that a program registers, and not one of the format."""
    return "." in name


def fits(name: str, payload: object) -> bool:
    """Whether the payload of a name is what it has to be; any for a registered one."""
    return is_registered(name) or (name in SHAPES and _fits(payload, SHAPES[name]))


def _fits(value: object, shape: object) -> bool:
    if shape is ANY:
        return True
    if isinstance(shape, frozenset):
        return type(value) in shape
    if isinstance(shape, tuple):
        return type(value) is tuple and len(value) == len(shape) and all(map(_fits, value, shape))
    if isinstance(shape, list):
        return type(value) is list and all(_fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        return type(value) is dict and all(type(key) is str for key in value)
    return type(value) is shape
