"""Values of Python and NumPy in a pickle that fastckpt writes: by which call each of them is made again.

These are the calls that Python's own pickler writes, with the names that protocol 2 has for them. torch.load without
``weights_only`` makes them; fastckpt reads them without a call.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, Final

from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.pickle_kinds import MAKERS, classes_in, quantized, refusal
from fastckpt.foreign.pickle_made import Global, Made
from fastckpt.layout.entries import Entry
from fastckpt.layout.named import ATTRIBUTES, NamedRef, TensorRef, is_registered, keys_of, parts
from fastckpt.layout.tree import AttributedDict, Path
from fastckpt.text import some

ReadArray = Callable[[TensorRef], bytes]
"""Gives the bytes of an array that are not in its payload."""


def made(value: NamedRef, entries: Sequence[Entry], read_array: ReadArray | None) -> Made | Global:
    """How a named value is made again.

    Raises:
        UnsupportedStateError: Its payload stands for no such value.
    """
    if value.name == "array":
        return _array(value.payload, read_array)
    try:
        if value.name == "quantized":
            return quantized(value.payload, entries)
        return _MAKERS[value.name](value.payload)
    except (ValueError, OverflowError, ArithmeticError, TypeError, LookupError, AttributeError) as error:
        raise UnsupportedStateError(f"there is no such {value.name}: {error}") from None


def unwritable(tree: Any, *, arrays: bool, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield place and name of all that cannot be written; ``arrays``: whether bytes outside of payloads can be had."""
    for place, value in named_values(tree, path):
        why = _refusal(value, arrays=arrays)
        if why is not None:
            yield place, why


def note_of_classes(tree: Any) -> tuple[str, ...]:
    """What is said of a pickle with this tree in it, if objects of a program's classes are among it."""
    names = list(dict.fromkeys(name for _, value in named_values(tree) for name in classes_in(value)))
    if not names:
        return ()
    return (f"torch.load gives all of it only with weights_only=False, and then imports {some(names, 8)}",)


def named_values(tree: Any, path: Path = ()) -> Iterator[tuple[Path, NamedRef]]:
    """Yield place and value of every named value in a tree, also in keys."""
    if type(tree) is NamedRef:
        yield path, tree
        for step, item in _inside(tree):
            yield from named_values(item, (*path, *step))
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from named_values(item, (*path, key))
        if type(tree) is AttributedDict:
            yield from named_values(tree.attributes, (*path, ATTRIBUTES))
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from named_values(item, (*path, index))


def _inside(value: NamedRef) -> Iterator[tuple[tuple[object, ...], Any]]:
    """The nodes in a named value, also those that are keys."""
    yield from parts(value)
    yield from (((index,), key) for index, key in enumerate(keys_of(value)))


def _refusal(value: NamedRef, *, arrays: bool) -> str | None:
    """Why a named value cannot be written; None if it can be."""
    if value.name == "array":
        return None if arrays or type(value.payload[0]) is bytes else "array"
    if value.name in ("tensor", "dict"):
        return None
    if value.name in ("quantized", *_MAKERS) or is_registered(value.name):
        return refusal(value)
    return str(value.payload[0]) if value.name == "object" else value.name


def arrays_in(tree: Any) -> Iterator[int]:
    """The entries of tensors that are the bytes of arrays: they go into the pickle."""
    for _, value in named_values(tree):
        if value.name == "array" and type(value.payload[0]) is TensorRef:
            yield value.payload[0].entry


def storages_beside(tree: Any, entries: Sequence[Entry], count: int) -> list[int]:
    """The storages that are records of the file: all but those in which only arrays lie."""
    arrays = set(arrays_in(tree))
    tensors = {entry.storage for number, entry in enumerate(entries) if number not in arrays}
    inside = {entries[number].storage for number in arrays} - tensors
    return [storage for storage in range(count) if storage not in inside]


# --- Python --------------------------------------------------------------------

_FACTORIES: Final = MappingProxyType(
    {name: Global("__builtin__", name) for name in ("bool", "bytearray", "bytes", "complex", "dict", "float")}
    | {name: Global("__builtin__", name) for name in ("frozenset", "list", "set", "tuple")}
    | {"int": Global("__builtin__", "long"), "str": Global("__builtin__", "unicode")}
    | {name: Global("collections", name) for name in ("Counter", "OrderedDict", "deque")}
)
"""What a defaultdict can make, as protocol 2 calls it."""


def _deque(payload: Any) -> Made:
    items, longest = payload
    return Made(Global("collections", "deque"), () if longest is None else ((), longest), items=items)


def _defaultdict(payload: Any) -> Made:
    pairs, factory = payload
    return Made(Global("collections", "defaultdict"), () if factory is None else (_FACTORIES[factory],), pairs=pairs)


def _namespace(payload: Any) -> Made:
    name, attributes = payload
    if name == "types.SimpleNamespace":
        return Made(Global("types", "SimpleNamespace"), state=attributes)
    if name != "argparse.Namespace":
        raise ValueError(name)
    return Made(Global("argparse", "Namespace"), state=attributes or None, bare=True)


def _path(payload: Any) -> Made:
    kind, text = payload
    pure = PureWindowsPath if "Windows" in kind else PurePosixPath
    return Made(Global("pathlib", kind), pure(text).parts)


def _zone(offset: int | None, name: str | None) -> tuple[Made, ...]:
    return () if offset is None else (_timezone((offset, name)),)


def _timezone(payload: Any) -> Made:
    offset, name = payload
    shift = datetime.timedelta(microseconds=offset)
    made_shift = _timedelta((shift.days, shift.seconds, shift.microseconds))
    return Made(Global("datetime", "timezone"), (made_shift,) if name is None else (made_shift, name))


def _timedelta(payload: Any) -> Made:
    return Made(Global("datetime", "timedelta"), payload)


def _clock(value: datetime.time | datetime.datetime) -> bytes:
    return bytes((value.hour, value.minute, value.second)) + value.microsecond.to_bytes(3, "big")


def _day(value: datetime.date) -> bytes:
    return value.year.to_bytes(2, "big") + bytes((value.month, value.day))


def _datetime(payload: Any) -> Made:
    text, fold, offset, name = payload
    value = datetime.datetime.fromisoformat(text)
    raw = bytearray(_day(value) + _clock(value))
    raw[2] |= 128 * bool(fold)
    return Made(Global("datetime", "datetime"), (bytes(raw), *_zone(offset, name)))


def _date(payload: Any) -> Made:
    return Made(Global("datetime", "date"), (_day(datetime.date.fromisoformat(payload)),))


def _time(payload: Any) -> Made:
    text, fold, offset, name = payload
    raw = bytearray(_clock(datetime.time.fromisoformat(text)))
    raw[0] |= 128 * bool(fold)
    return Made(Global("datetime", "time"), (bytes(raw), *_zone(offset, name)))


# --- NumPy ---------------------------------------------------------------------

_SIMPLE: Final = "biufc"
"""The letters of types that need nothing but a size and a byte order."""


def _element_type(kind: str) -> Made:
    order, letter, rest = kind[0], kind[1], kind[2:]
    dtype = Global("numpy", "dtype")
    if letter not in _SIMPLE:
        return Made(dtype, (kind,))
    # As NumPy writes it, but that this state is set by the call before it.
    return Made(dtype, (letter + rest, False, True), state=(3, order, None, None, None, -1, -1, 0))


def _array(payload: Any, read_array: ReadArray | None) -> Made:
    content, kind, size, by_columns = payload
    if type(content) is TensorRef:
        assert read_array is not None, "such an array is in `unwritable`"
        content = read_array(content)
    state = (1, size.shape, _element_type(kind), by_columns, content)
    # These names are those that every version of NumPy knows.
    empty = (Global("numpy", "ndarray"), (0,), b"b")
    return Made(Global("numpy.core.multiarray", "_reconstruct"), empty, state=state)


def _scalar(payload: Any) -> Made:
    kind, raw = payload
    return Made(Global("numpy.core.multiarray", "scalar"), (_element_type(kind), raw))


_MAKERS: Final[Mapping[str, Callable[[Any], Made | Global]]] = MappingProxyType(
    {
        "set": lambda items: Made(Global("__builtin__", "set"), (list(items),)),
        "frozenset": lambda items: Made(Global("__builtin__", "frozenset"), (list(items),)),
        "deque": _deque,
        "ordered_dict": lambda payload: Made(
            Global("collections", "OrderedDict"), pairs=payload[0], state=payload[1] or None
        ),
        "counter": lambda pairs: Made(Global("collections", "Counter"), (NamedRef("dict", pairs),)),
        "defaultdict": _defaultdict,
        "bytearray": lambda raw: Made(Global("__builtin__", "bytearray"), (raw,) if raw else ()),
        "namespace": _namespace,
        "path": _path,
        "datetime": _datetime,
        "date": _date,
        "time": _time,
        "timedelta": _timedelta,
        "timezone": _timezone,
        "range": lambda payload: Made(Global("__builtin__", "xrange"), payload),
        "slice": lambda payload: Made(Global("__builtin__", "slice"), payload),
        "fraction": lambda payload: Made(Global("fractions", "Fraction"), payload),
        "decimal": lambda text: Made(Global("decimal", "Decimal"), (text,)),
        "scalar": _scalar,
        **MAKERS,
    }
)
