"""Python's plain values and the named values that stand for them in a tree: the one list of those that are known.

`to_named` makes the named value, `from_named` the value again. Payloads are
those of `layout.named.SHAPES`. Only classes of this list are ever made, and
those that the program itself registered.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final

from fastckpt.constants import MAX_INT_KEY_SIZE
from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.layout.key_watch import makes_slow
from fastckpt.layout.named import NamedRef, SizeRef, is_registered
from fastckpt.layout.placeholder import Placeholder
from fastckpt.layout.register import class_name, is_namedtuple, of_name

FACTORIES: Final[dict[str, Any]] = {
    kind.__name__: kind
    for kind in (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
} | {kind.__name__: kind for kind in (Counter, OrderedDict, deque)}
"""What a defaultdict can make, by name."""
NAMESPACES: Final = {class_name(kind): kind for kind in (argparse.Namespace, types.SimpleNamespace)}
PATHS: Final = {
    kind.__name__: kind
    for kind in (
        pathlib.PosixPath,
        pathlib.WindowsPath,
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
    )
}
_MICROSECOND: Final = datetime.timedelta(microseconds=1)
_OF_CLASSES: Final = ("enum", "namedtuple", "dataclass")


def distinct(keys: Iterable[Any]) -> list[Hashable]:
    """The keys of a dict or the elements of a set, for which a hash table is not slow.

    Raises:
        DamagedError: One of them cannot be hashed, or they are chosen to make it slow.
    """
    listed = list(keys)
    try:
        slow = makes_slow(listed)
    except TypeError as error:
        raise DamagedError(f"a dict key or an element of a set cannot be one: {error}") from None
    if slow:
        raise DamagedError("the keys of a dict or the elements of a set are chosen to make it slow")
    return listed


def dict_of(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """The dict with these pairs. Raises DamagedError if two keys are equal, as True and 1 are,
    and UnsupportedStateError if they may have been different objects.
    """
    keys = distinct(key for key, _ in pairs)
    result = dict(zip(keys, (value for _, value in pairs), strict=True))
    if len(result) < len(keys):
        raise _equal("a dict has two keys", keys)
    return result


def _elements(items: Sequence[Any]) -> frozenset[Any]:
    elements = distinct(items)
    result = frozenset(elements)
    if len(result) < len(elements):
        raise _equal("a set has two elements", elements)
    return result


def _equal(what: str, keys: Sequence[Hashable]) -> DamagedError | UnsupportedStateError:
    if any(type(key) is Placeholder for key in keys):
        return UnsupportedStateError(
            f"{what} that cannot be told apart while their class is not known",
            next_step="load the tensors alone, with keys=",
        )
    return DamagedError(f"{what} that are equal")


# To named values


def to_named(value: Any) -> NamedRef | None:
    """The named value for one of Python's; None if it is not known. Registered classes are not asked for here.

    Raises:
        UnsupportedStateError: It is known, and has something that cannot be kept.
    """
    kind = type(value)
    if (make := _TO_NAMED.get(kind)) is not None:
        return NamedRef(*make(value))
    if isinstance(value, enum.Enum):
        return NamedRef("enum", (class_name(kind), value.name or "", value.value))
    if is_namedtuple(kind):
        _require_no_more(value, ())
        return NamedRef("namedtuple", (class_name(kind), dict(zip(kind._fields, value, strict=True))))
    if dataclasses.is_dataclass(kind) and not _is_built_in(kind):
        fields = [field.name for field in dataclasses.fields(value)]
        _require_no_more(value, fields)
        return NamedRef(
            "dataclass", (class_name(kind), {name: getattr(value, name) for name in fields if hasattr(value, name)})
        )
    return None


def _is_built_in(kind: type) -> bool:
    """Whether objects of a class hold more than attributes, as a list does: then one of its bases makes them itself."""
    return any(isinstance(vars(base).get("__new__"), types.BuiltinFunctionType) for base in kind.__mro__[:-1])


def _require_no_more(value: object, names: Sequence[str]) -> None:
    """Raise UnsupportedStateError if an object has attributes beside these."""
    slots = [name for base in type(value).__mro__ for name in _slots(base) if hasattr(value, name)]
    more = sorted({*getattr(value, "__dict__", ()), *slots} - set(names))
    if more:
        raise UnsupportedStateError(
            f"cannot store the attributes {', '.join(more)[:200]} of a {class_name(type(value))}",
            next_step=f"fastckpt.register({type(value).__name__}, to_plain, from_plain)",
        )


def _slots(cls: type) -> Iterable[str]:
    """The attributes that have a slot of their own in objects of a class, without those of its bases."""
    names = vars(cls).get("__slots__", ())
    for name in (names,) if isinstance(names, str) else names:
        if name.startswith("__") and not name.endswith("__"):
            yield f"_{cls.__name__.lstrip('_')}{name}"
        elif name not in ("__dict__", "__weakref__"):
            yield name


def _counter(value: Counter[Any]) -> tuple[str, Any]:
    _require_no_more(value, ())
    return "counter", list(value.items())


def _defaultdict(value: defaultdict[Any, Any]) -> tuple[str, Any]:
    factory = value.default_factory
    name = getattr(factory, "__name__", "")
    if factory is not None and FACTORIES.get(name) is not factory:
        raise UnsupportedStateError(f"cannot store the factory of a defaultdict: {factory!r:.80}", next_step="dict(x)")
    return "defaultdict", (list(value.items()), name or None)


def _zone(zone: datetime.tzinfo | None) -> tuple[int | None, str | None]:
    if zone is None:
        return None, None
    if type(zone) is not datetime.timezone:
        raise UnsupportedStateError(
            f"cannot store the time zone {zone!r:.80}", next_step="x.astimezone(datetime.timezone.utc)"
        )
    offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
    return offset // _MICROSECOND, name[0] if name else None


def _clock(value: datetime.datetime | datetime.time) -> tuple[str, Any]:
    text = value.replace(tzinfo=None, fold=0).isoformat()
    return type(value).__name__, (text, value.fold, *_zone(value.tzinfo))


def _fraction(value: fractions.Fraction) -> tuple[str, Any]:
    if not is_short(value.numerator, value.denominator):
        raise UnsupportedStateError(f"cannot store a fraction of numbers of more than {MAX_INT_KEY_SIZE} bytes")
    return "fraction", (value.numerator, value.denominator)


def is_short(*numbers: int) -> bool:
    """Whether a fraction of these numbers is kept: larger ones take long at every use."""
    return all(number.bit_length() < 8 * MAX_INT_KEY_SIZE for number in numbers)


def _placeholder(value: Placeholder) -> tuple[str, Any]:
    if value.kind == "registered":
        return value.name, value.content
    if value.kind == "enum":
        return "enum", (value.name, value.content["name"], value.content["value"])
    if value.kind == "subclass":
        tensors, context, size, stride, flags = value.content.values()
        return "subclass", (value.name, tensors, context, SizeRef(tuple(size)), SizeRef(tuple(stride)), flags)
    return value.kind, (value.name, dict(value.content))


_TO_NAMED: Final[dict[type, Callable[[Any], tuple[str, Any]]]] = {
    set: lambda value: ("set", list(value)),
    frozenset: lambda value: ("frozenset", list(value)),
    deque: lambda value: ("deque", (list(value), value.maxlen)),
    Counter: _counter,
    defaultdict: _defaultdict,
    bytearray: lambda value: ("bytearray", bytes(value)),
    datetime.datetime: _clock,
    datetime.time: _clock,
    datetime.date: lambda value: ("date", value.isoformat()),
    datetime.timedelta: lambda value: ("timedelta", (value.days, value.seconds, value.microseconds)),
    datetime.timezone: lambda value: ("timezone", _zone(value)),
    range: lambda value: ("range", (value.start, value.stop, value.step)),
    slice: lambda value: ("slice", (value.start, value.stop, value.step)),
    fractions.Fraction: _fraction,
    decimal.Decimal: lambda value: ("decimal", str(value)),
    Placeholder: _placeholder,
    **dict.fromkeys(NAMESPACES.values(), lambda value: ("namespace", (class_name(type(value)), dict(vars(value))))),
    **dict.fromkeys(PATHS.values(), lambda value: ("path", (type(value).__name__, str(value)))),
}


# From named values


def from_named(name: str, payload: Any) -> Any:
    """The value that a named value stands for; what is in the payload is resolved already.

    Raises:
        DamagedError: There is no such value.
        UnsupportedStateError: The name is not known here, or the registered class refuses.
    """
    if is_registered(name):
        entry = of_name(name)
        if entry is None or entry.from_plain is None:
            return Placeholder("registered", name, payload)
        return entry.made_of(payload)
    make = _FROM_NAMED.get(name)
    if make is None:
        raise UnsupportedStateError(
            f"the state holds a {name!r} that this fastckpt cannot rebuild",
            next_step="load the tensors alone, with keys=",
        )
    try:
        return make(payload)
    except UnsupportedStateError:
        raise
    except (ValueError, OverflowError, ArithmeticError, TypeError, LookupError, AttributeError) as error:
        if name in _OF_CLASSES:
            raise UnsupportedStateError(f"the class registered for {payload[0]!r} does not fit: {error}") from None
        raise DamagedError(f"the tree is not valid: there is no such {name}: {error}") from None


def _ordered_dict(payload: Any) -> OrderedDict[Any, Any]:
    result = OrderedDict(dict_of(payload[0]))
    vars(result).update(payload[1])
    return result


def _counter_of(pairs: Any) -> Counter[Any]:
    result: Counter[Any] = Counter()
    dict.update(result, dict_of(pairs))
    return result


def _deque(payload: Any) -> deque[Any]:
    items, length = payload
    if length is not None and length < len(items):
        raise ValueError(f"{len(items)} items in one of {length}")
    return deque(items, length)


def _namespace(payload: Any) -> Any:
    result = NAMESPACES[payload[0]]()
    vars(result).update(payload[1])
    return result


def _path(payload: Any) -> pathlib.PurePath:
    kind: Any = PATHS[payload[0]]
    try:
        return kind(payload[1])  # type: ignore[no-any-return]
    except NotImplementedError:  # A WindowsPath elsewhere than on Windows, and the other way round.
        return PATHS[f"Pure{payload[0]}"](payload[1])


def _with_zone(value: Any, payload: Any) -> Any:
    _, fold, offset, name = payload
    if value.tzinfo is not None:
        raise ValueError("it has an offset of its own")
    return value.replace(fold=fold, tzinfo=None if offset is None else _timezone((offset, name)))


def _timezone(payload: Any) -> datetime.timezone:
    offset, name = payload
    shift = datetime.timedelta(microseconds=offset)
    return datetime.timezone(shift) if name is None else datetime.timezone(shift, name)


def _fraction_of(payload: Any) -> fractions.Fraction:
    if not is_short(*payload):
        raise ValueError(f"its numbers have more than {MAX_INT_KEY_SIZE} bytes")
    return fractions.Fraction(*payload)


def _enum(payload: Any) -> Any:
    name, member, value = payload
    entry = of_name(name)
    if entry is None or entry.to_plain is not None:
        return Placeholder("enum", name, {"name": member, "value": value})
    members = getattr(entry.cls, "__members__", {})
    return members[member] if member in members else entry.cls(value)


def _namedtuple(payload: Any) -> Any:
    name, fields = payload
    entry = of_name(name)
    if entry is None or entry.to_plain is not None:
        return Placeholder("namedtuple", name, fields)
    return entry.cls(**fields)


def _dataclass(payload: Any) -> Any:
    name, fields = payload
    entry = of_name(name)
    if entry is None or entry.to_plain is not None:
        return Placeholder("dataclass", name, fields)
    known = {field.name for field in dataclasses.fields(entry.cls)}
    if not known.issuperset(fields):
        raise ValueError(f"the class has no field {', '.join(sorted(set(fields) - known))[:200]}")
    result: Any = object.__new__(entry.cls)
    for field, value in fields.items():  # As pickle does: __init__ is not called, and frozen ones are filled too.
        object.__setattr__(result, field, value)
    return result


_FROM_NAMED: Final[dict[str, Callable[[Any], Any]]] = {
    "set": lambda items: set(_elements(items)),
    "frozenset": _elements,
    "deque": _deque,
    "dict": dict_of,
    "ordered_dict": _ordered_dict,
    "counter": _counter_of,
    "defaultdict": lambda payload: defaultdict(
        None if payload[1] is None else FACTORIES[payload[1]], dict_of(payload[0])
    ),
    "bytearray": bytearray,
    "namespace": _namespace,
    "path": _path,
    "datetime": lambda payload: _with_zone(datetime.datetime.fromisoformat(payload[0]), payload),
    "date": datetime.date.fromisoformat,
    "time": lambda payload: _with_zone(datetime.time.fromisoformat(payload[0]), payload),
    "timedelta": lambda payload: datetime.timedelta(*payload),
    "timezone": _timezone,
    "range": lambda payload: range(*payload),
    "slice": lambda payload: slice(*payload),
    "fraction": _fraction_of,
    "decimal": decimal.Decimal,
    "enum": _enum,
    "namedtuple": _namedtuple,
    "dataclass": _dataclass,
}
