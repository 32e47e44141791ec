"""Values of Python's own types, and of numpy's, in a pickle: the named values that stand for them.

A pickle says which function makes a value, and of what. The functions of this
table are known; none is called. What does not look as Python writes it stays an
object that is not understood.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, Final

from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.model import Opaque
from fastckpt.foreign.plain_tensors import tensor_kind
from fastckpt.layout.named import NamedRef, SizeRef, fits
from fastckpt.layout.python_values import FACTORIES, is_short
from fastckpt.layout.tree import Path, encode_tree

Fields = Mapping[str, Any]

_RECONSTRUCTORS: Final = frozenset(
    (
        "copyreg._reconstructor",
        "copyreg.__newobj__",
        "copyreg.__newobj_ex__",
        "torch._utils._rebuild_wrapper_subclass",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.ma.core._mareconstruct",
    )
)
_KINDS_OF_TENSORS: Final = MappingProxyType(
    {
        "torch._utils._rebuild_sparse_tensor": "torch.Tensor (sparse)",
        "torch._utils._rebuild_sparse_csr_tensor": "torch.Tensor (sparse)",
        "torch._utils._rebuild_qtensor": "torch.Tensor (quantized)",
        "torch._utils._rebuild_nested_tensor": "torch.Tensor (nested)",
        "torch._utils._rebuild_meta_tensor_no_storage": "torch.Tensor (meta)",
        "torch._utils._rebuild_device_tensor_from_numpy": "torch.Tensor (from numpy)",
    }
)
_NUMPY_ARRAY: Final = re.compile(r"numpy\.(_?core\.multiarray|_?core\.numeric)\.(_reconstruct|_frombuffer)")
_NUMPY_SCALAR: Final = re.compile(r"numpy\._?core\.multiarray\.scalar")
_DTYPE: Final = re.compile(r"[biufcSUVmM]\d{1,9}|b1|[?]")
_UNIT: Final = re.compile(rb"[A-Za-z]{1,7}")
_WHOLE_TYPE: Final = re.compile(r"[<>|][biufcmMSUV]\d{1,9}(\[\d{0,9}[A-Za-z]{1,9}\])?")
"""The type of an array's elements with its byte order and unit, as fastckpt writes those that have more than that."""
_MAX_SHAPE: Final = 64
_CLASS: Final = {"class": True}
"""What is in the node of a class itself."""


def readable_name(value: Opaque) -> str:
    """What people call it: the class of an object, not the function that puts it together again."""
    name = value.global_name
    if name in _RECONSTRUCTORS and value.args and type(value.args[0]) is Opaque:
        return value.args[0].global_name
    if _NUMPY_ARRAY.fullmatch(name):
        return "numpy.ndarray"
    if _NUMPY_SCALAR.fullmatch(name):
        return "numpy.generic"
    return _KINDS_OF_TENSORS.get(name, name)


def plain_value(global_name: str, fields: Fields) -> NamedRef | None:
    """The named value for what ``global_name`` would make; None if it is none of those known.

    Args:
        global_name: The function or class.
        fields: What it would be given, as nodes: ``args``, ``state``, ``items``, ``pairs``.
    """
    make = _maker(global_name)
    try:
        made = make(fields) if make is not None else tensor_kind(global_name, fields)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, UnsupportedStateError):
        return None  # It does not look as it should.
    return made if made is not None and fits(made.name, made.payload) else None


def is_known(global_name: str) -> bool:
    """Whether a call of this function or class may be a plain value, so that `plain_value` looks through its parts."""
    return _maker(global_name) is not None


def _maker(global_name: str) -> Callable[[Fields], NamedRef | None] | None:
    make = _MAKERS.get(global_name)
    if make is None and global_name.startswith("pathlib."):
        make = _path_of(global_name.rpartition(".")[2])
    if make is None and _NUMPY_ARRAY.fullmatch(global_name):
        make = _array
    if make is None and _NUMPY_SCALAR.fullmatch(global_name):
        make = _scalar
    return make


def plain_global(global_name: str) -> NamedRef | None:
    """The named value for something that is found under this name and made by no call."""
    module, _, name = global_name.rpartition(".")
    return NamedRef("memory_format", name) if module == "torch" and name in _MEMORY_FORMATS else None


def _only(fields: Fields, *keys: str) -> None:
    if not fields.keys() <= set(keys):
        raise ValueError


def _elements(fields: Fields, name: str) -> NamedRef:
    _only(fields, "args", "items")
    args = fields.get("args", ())
    if args:
        (listed,) = args
        _only(fields, "args")
        return NamedRef(name, _sorted(_list(listed)))
    return NamedRef(name, _sorted(fields.get("items", [])))


def _sorted(elements: Iterable[object]) -> list[object]:
    """The elements of a set in the order in which they stand in a tree: a pickle has them in any order."""
    return sorted(elements, key=lambda element: encode_tree(element, _refuse))


def _refuse(value: object, path: Path) -> object:
    raise TypeError


def _list(value: object) -> list[Any] | tuple[Any, ...]:
    if type(value) is list or type(value) is tuple:
        return value
    raise TypeError


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """The pairs of a node that is a dict."""
    if type(value) is dict:
        return list(value.items())
    if type(value) is NamedRef and value.name == "dict":
        return list(value.payload)
    raise TypeError


def _counter(fields: Fields) -> NamedRef:
    _only(fields, "args", "pairs")
    (counts,) = fields.get("args", ({},))
    return NamedRef("counter", [*_pairs(counts), *map(tuple, fields.get("pairs", []))])


def _defaultdict(fields: Fields) -> NamedRef:
    _only(fields, "args", "pairs")
    args = fields.get("args", ())
    (factory,) = args or (None,)
    name = None if factory is None else _builtin(factory)
    return NamedRef("defaultdict", (list(map(tuple, fields.get("pairs", []))), name))


def _builtin(factory: object) -> str:
    """The name of a class of Python's that nothing was put into."""
    if type(factory) is NamedRef and factory.name == "object":
        name, fields = factory.payload
        module, _, short = name.rpartition(".")
        if module in ("builtins", "collections") and short in FACTORIES and fields == _CLASS:
            return str(short)
    raise TypeError


def _deque(fields: Fields) -> NamedRef:
    _only(fields, "args", "items")
    args = fields.get("args", ())
    listed = list(_list(args[0])) if args else []
    longest = args[1] if len(args) > 1 else None
    return NamedRef("deque", ([*listed, *fields.get("items", [])], longest))


def _bytearray(fields: Fields) -> NamedRef:
    _only(fields, "args")
    args = fields.get("args", (b"",))
    if len(args) == 2 and args[1] == "latin-1":
        return NamedRef("bytearray", args[0].encode("latin-1"))
    (raw,) = args
    return NamedRef("bytearray", raw)


def _namespace_of(name: str) -> Callable[[Fields], NamedRef]:
    def make(fields: Fields) -> NamedRef:
        _only(fields, "args", "state")
        args = fields.get("args", ())
        # copyreg._reconstructor is another function; a namespace itself is called with nothing.
        if args:
            raise ValueError
        return NamedRef("namespace", (name, fields.get("state", {})))

    return make


def _reconstructor(fields: Fields) -> NamedRef | None:
    """Objects as protocols 0 and 1 write them."""
    kind = fields["args"][0]
    _only(fields, "args", "state")
    if type(kind) is NamedRef and kind.payload in [(name, _CLASS) for name in _NAMESPACES]:
        return NamedRef("namespace", (kind.payload[0], fields.get("state", {})))
    return None


def _path_of(kind: str) -> Callable[[Fields], NamedRef]:
    def make(fields: Fields) -> NamedRef | None:
        _only(fields, "args")
        pure = PureWindowsPath if "Windows" in kind else PurePosixPath
        if kind not in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            return None
        return NamedRef("path", (kind, str(pure(*fields.get("args", ())))))

    return make  # type: ignore[return-value]


def _zone(args: tuple[Any, ...]) -> tuple[int | None, str | None]:
    if not args:
        return None, None
    (zone,) = args
    if type(zone) is not NamedRef or zone.name != "timezone":
        raise TypeError
    offset, name = zone.payload
    return offset, name


def _bytes(value: object, size: int) -> bytes:
    if type(value) is not bytes or len(value) != size:
        raise TypeError
    return value


def _datetime(fields: Fields) -> NamedRef:
    _only(fields, "args")
    raw = bytearray(_bytes(fields["args"][0], 10))
    fold, raw[2] = divmod(raw[2], 128)
    text = datetime.datetime(*_six(raw), int.from_bytes(raw[7:], "big")).isoformat()
    return NamedRef("datetime", (text, fold, *_zone(fields["args"][1:])))


def _six(raw: bytes | bytearray) -> tuple[int, int, int, int, int, int]:
    return raw[0] * 256 + raw[1], raw[2], raw[3], raw[4], raw[5], raw[6]


def _date(fields: Fields) -> NamedRef:
    _only(fields, "args")
    (raw,) = fields["args"]
    _bytes(raw, 4)
    return NamedRef("date", datetime.date(raw[0] * 256 + raw[1], raw[2], raw[3]).isoformat())


def _time(fields: Fields) -> NamedRef:
    _only(fields, "args")
    raw = bytearray(_bytes(fields["args"][0], 6))
    fold, raw[0] = divmod(raw[0], 128)
    text = datetime.time(raw[0], raw[1], raw[2], int.from_bytes(raw[3:], "big")).isoformat()
    return NamedRef("time", (text, fold, *_zone(fields["args"][1:])))


def _timezone(fields: Fields) -> NamedRef:
    _only(fields, "args")
    delta, *name = fields["args"]
    days, seconds, micros = delta.payload
    (text,) = name or (None,)
    return NamedRef("timezone", ((days * 86400 + seconds) * 10**6 + micros, text))


def _numbers_of(name: str) -> Callable[[Fields], NamedRef]:
    def make(fields: Fields) -> NamedRef:
        _only(fields, "args")
        return NamedRef(name, tuple(fields["args"]))

    return make


def _timedelta(fields: Fields) -> NamedRef:
    _only(fields, "args")
    return NamedRef("timedelta", (*fields.get("args", ()), 0, 0, 0)[:3])


def _fraction(fields: Fields) -> NamedRef | None:
    _only(fields, "args")
    args = fields["args"]
    if len(args) == 1:
        if type(args[0]) is not str or len(args[0]) > 2000:
            return None
        above, _, below = args[0].partition("/")
        args = (int(above), int(below or "1"))
    return NamedRef("fraction", tuple(args)) if is_short(*args) else None


def _decimal(fields: Fields) -> NamedRef:
    _only(fields, "args")
    (text,) = fields["args"]
    return NamedRef("decimal", text)


def _layout(fields: Fields) -> NamedRef:
    _only(fields, "args")
    (text,) = fields["args"]
    return NamedRef("layout", text.removeprefix("torch."))


# --- numpy ---------------------------------------------------------------------


def _element_type(node: object) -> tuple[str, int]:
    """The type of a numpy.dtype as numpy writes it, and its size."""
    if type(node) is not NamedRef or node.name != "object" or node.payload[0] != "numpy.dtype":
        raise TypeError
    fields = node.payload[1]
    text = fields["args"][0]
    if fields.keys() == {"args"} and len(fields["args"]) == 1 and _WHOLE_TYPE.fullmatch(text):
        return text, int(re.findall(r"\d+", text)[0]) * (4 if text[1] == "U" else 1)
    state = fields["state"]
    if type(text) is not str or not _DTYPE.fullmatch(text) or any(part is not None for part in state[2:5]):
        raise TypeError
    unit = _unit(state[8]) if text[0] in "mM" else ""
    if not unit and len(state) > 8 and state[8] and text[0] not in "mM":
        raise TypeError
    order = state[1]
    if order not in ("<", ">", "|"):
        raise TypeError
    size = int(text[1:]) * (4 if text[0] == "U" else 1)
    return order + text + unit, size


def _unit(metadata: Any) -> str:
    """What numbers of times count, as NumPy writes it: ``[25s]``, or nothing for none."""
    notes, (unit, number, *rest) = metadata
    if notes or rest != [1, 1] or type(number) is not int or not 0 < number < 2**31 or not _UNIT.fullmatch(unit):
        raise TypeError
    return "" if unit == b"generic" else f"[{number if number > 1 else ''}{unit.decode('ascii')}]"


def _array(fields: Fields) -> NamedRef:
    _only(fields, "args", "state")
    if "state" in fields:
        if fields["args"][0] != NamedRef("object", ("numpy.ndarray", _CLASS)):
            raise TypeError  # An object of a class derived from it.
        _, shape, dtype, fortran, raw = fields["state"]
    else:
        raw, dtype, shape, order = fields["args"]
        fortran = {"C": False, "F": True}[order]
        raw = raw.payload if type(raw) is NamedRef and raw.name == "bytearray" else raw
    text, size = _element_type(dtype)
    extents = shape.shape if type(shape) is SizeRef else shape
    if type(extents) is not tuple or len(extents) > _MAX_SHAPE or type(raw) is not bytes:
        raise TypeError
    numel = 1
    for extent in extents:
        if type(extent) is not int or not 0 <= extent < 2**63:
            raise TypeError
        numel *= extent
    if numel * size != len(raw):
        raise ValueError
    return NamedRef("array", (raw, text, SizeRef(extents), bool(fortran)))


def _scalar(fields: Fields) -> NamedRef:
    _only(fields, "args")
    dtype, raw = fields["args"]
    text, size = _element_type(dtype)
    return NamedRef("scalar", (text, _bytes(raw, size)))


_MEMORY_FORMATS: Final = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_NAMESPACES: Final = ("argparse.Namespace", "types.SimpleNamespace")

_MAKERS: Final[Mapping[str, Callable[[Fields], NamedRef | None]]] = MappingProxyType(
    {
        "builtins.set": lambda fields: _elements(fields, "set"),
        "builtins.frozenset": lambda fields: _elements(fields, "frozenset"),
        "builtins.bytearray": _bytearray,
        "builtins.range": _numbers_of("range"),
        "builtins.slice": _numbers_of("slice"),
        "collections.Counter": _counter,
        "collections.defaultdict": _defaultdict,
        "collections.deque": _deque,
        **{name: _namespace_of(name) for name in _NAMESPACES},
        "copyreg._reconstructor": _reconstructor,
        "datetime.datetime": _datetime,
        "datetime.date": _date,
        "datetime.time": _time,
        "datetime.timedelta": _timedelta,
        "datetime.timezone": _timezone,
        "fractions.Fraction": _fraction,
        "decimal.Decimal": _decimal,
        "torch.serialization._get_layout": _layout,
    }
)
