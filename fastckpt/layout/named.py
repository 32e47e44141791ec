"""Named values: what a tree can hold besides its own few types.

A named value is a name and a payload of tree nodes. The names without a dot
are those of the format: Python's other plain values, arrays, and objects that
are kept as they are. Names with a dot are those that a program registered for
its own types. What a payload looks like is checked before anybody uses it;
nothing here is ever imported or called. `fastckpt.layout.python_values` turns
Python's values into these and back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

from fastckpt.constants import MAX_INT_KEY_SIZE


# Not frozen: there is one for each tensor, and a frozen one takes twice the time to make.
@dataclass(slots=True, unsafe_hash=True)
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
KEY: Final = Hashable
"""Any node in which no tensor is: it is in a set, or the key of a dict."""
_FIELDS: Final = {str: ANY}
_PAIRS: Final = [(KEY, ANY)]
_TENSOR_OR_BYTES: Final = frozenset((TensorRef, bytes))
_MAYBE_INT: Final = frozenset((int, type(None)))
_MAYBE_STR: Final = frozenset((str, type(None)))

SHAPES: Final[dict[str, object]] = {
    "object": (str, _FIELDS),
    "tensor": (TensorRef, _FIELDS),
    "array": (_TENSOR_OR_BYTES, str, SizeRef, bool),
    "scalar": (str, bytes),
    "set": [KEY],
    "frozenset": [KEY],
    "deque": ([ANY], _MAYBE_INT),
    "dict": _PAIRS,
    "ordered_dict": (_PAIRS, _FIELDS),
    "counter": _PAIRS,
    "defaultdict": (_PAIRS, _MAYBE_STR),
    "bytearray": bytes,
    "namespace": (str, _FIELDS),
    "path": (str, str),
    "datetime": (str, int, _MAYBE_INT, _MAYBE_STR),
    "date": str,
    "time": (str, int, _MAYBE_INT, _MAYBE_STR),
    "timedelta": (int, int, int),
    "timezone": (int, _MAYBE_STR),
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
    "sparse": (str, _FIELDS, SizeRef, bool, int),
    "quantized": (str, _FIELDS, int),
    "nested": (str, [ANY], int),
    "meta": (str, SizeRef, SizeRef, int),
    "subclass": (str, _FIELDS, ANY, SizeRef, SizeRef, int),
}
"""The payload of every name of the format: a type; types one of which it is; a tuple of parts; a list of parts
of one shape; a dict from str."""

TENSOR_KINDS: Final = ("sparse", "quantized", "nested", "meta", "subclass")
"""Those of them that are tensors made of plain ones."""


def is_registered(name: str) -> bool:
    """Whether a name is one that a program registers, and not one of the format."""
    return "." in name


def fits(name: str, payload: object, *, no_tensors: bool = False) -> bool:
    """Whether the payload of a name is what it has to be; any for a registered one.

    ``no_tensors``: It is known that no tensor is in the payload. Keys in keys would be gone through for each level.
    """
    return is_registered(name) or (name in SHAPES and _fits(payload, SHAPES[name], no_tensors))


def _fits(value: Any, shape: Any, no_tensors: bool) -> bool:
    if shape is ANY:
        return True
    if shape is KEY:
        return no_tensors or not has_tensor(value)
    if isinstance(shape, frozenset):
        return type(value) in shape
    if isinstance(shape, tuple):
        return type(value) is tuple and len(value) == len(shape) and all(map(_fits, value, shape, repeat(no_tensors)))
    if isinstance(shape, list):
        return type(value) is list and all(_fits(item, shape[0], no_tensors) for item in value)
    if isinstance(shape, dict):
        return type(value) is dict and all(type(key) is str for key in value)
    return type(value) is shape


def has_tensor(value: Any) -> bool:
    """Whether a node is a tensor, or one is in it."""
    kind = type(value)
    if kind in (list, tuple):
        return any(map(has_tensor, value))
    if isinstance(value, dict):
        return any(map(has_tensor, value.values())) or (kind is not dict and has_tensor(vars(value)))
    return has_tensor(value.payload) if kind is NamedRef else kind is TensorRef


def parts(value: NamedRef) -> Iterator[tuple[tuple[object, ...], Any]]:
    """Yield the nodes right inside of a named value that are no keys, each with the steps to it.

    A dict's keys, an item's position and the key of a pair are a step; the place in a payload of several parts is none,
    so that the tensor of an array has the array's own name.
    """
    if value.name == "object":
        yield from ((step, item) for _, step, item in object_parts(value.payload[1]))
    else:
        yield from _parts(value.payload, SHAPES.get(value.name, ANY))


def object_parts(fields: dict[str, Any]) -> Iterator[tuple[tuple[object, ...], tuple[object, ...], Any]]:
    """What an object is made of: the way to it in the fields, the steps by which a program gets there, and itself."""
    for what, value in fields.items():
        if what == "args" and type(value) is tuple:
            # An object that is made of one thing is another view of it.
            yield from (((what, index), (index,) if len(value) > 1 else (), item) for index, item in enumerate(value))
        elif what == "state":
            yield from _attributes(value, (what,))
        elif what in ("items", "pairs") and type(value) is list:
            pairs = what == "pairs" and all(type(item) is tuple and len(item) == 2 for item in value)
            for index, item in enumerate(value):
                if pairs:
                    yield (what, index, 1), (key_step(item[0], index),), item[1]
                else:
                    yield (what, index), (index,), item
        elif what != "class":
            yield (what,), (what,), value


_INSIDE: Final = ("_modules", "_parameters", "_buffers")
"""Attributes of a module of torch: what is in them goes by the name that it has there."""
ATTRIBUTES: Final = "__dict__"
"""The step into the attributes of an ordered dict."""
_ITSELF: Final = "_local_tensor"
"""The attribute of a distributed tensor that has its numbers."""


def _attributes(state: Any, way: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], tuple[object, ...], Any]]:
    if type(state) is tuple and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state):
        # The attributes of a class with slots: those in its dict, and those in slots.
        for index, part in enumerate(state):
            yield from _attributes({} if part is None else part, (*way, index))
    elif isinstance(state, dict):
        for name, value in _dict_parts(state):
            if name in _INSIDE and isinstance(value, dict):
                yield from (((*way, name, inner), (inner,), item) for inner, item in _dict_parts(value))
            else:
                yield (*way, name), () if name == _ITSELF else (name,), value
    else:
        yield way, way, state


def _dict_parts(value: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The items of a dict and, of one that has some, its attributes."""
    yield from value.items()
    attributes = vars(value) if type(value) is OrderedDict else getattr(value, "attributes", None)
    if attributes:
        yield ATTRIBUTES, attributes


def keys_of(value: NamedRef) -> list[Any]:
    """The keys of the pairs in a named value, which are no `parts` of it."""
    shape = SHAPES.get(value.name)
    shapes, payload = (shape, value.payload) if isinstance(shape, tuple) else ((shape,), (value.payload,))
    return [key for part, pairs in zip(shapes, payload, strict=True) if part == _PAIRS for key, _ in pairs]


def keys_beside_names(value: NamedRef) -> list[Any]:
    """The keys of the pairs in a named value, if there are others than text: the steps of `parts` do not tell them."""
    keys = keys_of(value)
    return keys if any(type(key) is not str for key in keys) else []


def _parts(value: Any, shape: Any) -> Iterator[tuple[tuple[object, ...], Any]]:
    if isinstance(shape, tuple):
        for item, part in zip(value, shape, strict=True):
            yield from _parts(item, part)
    elif isinstance(shape, list):
        for index, item in enumerate(value):
            yield ((key_step(item[0], index),), item[1]) if isinstance(shape[0], tuple) else ((index,), item)
    elif isinstance(shape, dict):
        yield from (((key,), item) for key, item in value.items())
    else:
        yield (), value


def key_step(key: object, index: int) -> object:
    """The step to the value of a pair: its key if that is a name or number, else the position of the pair."""
    if type(key) is str or key is None or type(key) is bool:
        return str(key)
    return key if type(key) is int and key.bit_length() < 8 * MAX_INT_KEY_SIZE else index
