"""A named value as people read it: ``Counter({'a': 2})``."""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any, Final

from fastckpt.errors import FastckptError
from fastckpt.layout.named import NamedRef, SizeRef, TensorRef
from fastckpt.layout.placeholder import Placeholder
from fastckpt.layout.python_values import from_named
from fastckpt.layout.tree import DeviceRef, DTypeRef

_SCALARS: Final = {
    "<f2": "<e",
    "<f4": "<f",
    "<f8": "<d",
    "<i2": "<h",
    "<i4": "<i",
    "<i8": "<q",
    "<u2": "<H",
    "<u4": "<I",
    "<u8": "<Q",
    "|b1": "?",
    "|i1": "b",
    "|u1": "B",
}
"""How `struct` reads the bytes of a scalar, by its type."""


_TYPES: Final = {
    "tensor": "Tensor",
    "array": "numpy.ndarray",
    "counter": "Counter",
    "ordered_dict": "OrderedDict",
    "memory_format": "torch.memory_format",
    "layout": "torch.layout",
    "generator": "torch.Generator",
    "fraction": "Fraction",
    "decimal": "Decimal",
}
_KINDS: Final = {"f": "float", "i": "int", "u": "uint", "b": "bool", "c": "complex"}


def named_type(value: NamedRef) -> str:
    """What a named value is an instance of."""
    if value.name in ("object", "namespace", "namedtuple", "dataclass", "enum", "path"):
        return str(value.payload[0])
    if value.name == "scalar":
        return f"numpy.{_element_name(value.payload[0])}"
    return _TYPES.get(value.name, value.name)


def _element_name(text: str) -> str:
    kind, size = text.lstrip("<>|=")[:1], text.lstrip("<>|=")[1:]
    if kind in _KINDS and size.isdecimal() and len(size) < 4:
        return "bool" if kind == "b" else f"{_KINDS[kind]}{int(size) * 8}"
    return text


class _Shown:
    """Something that is shown as this text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def named_text(value: NamedRef) -> str:
    """The value on one line, as Python would show it."""
    try:
        return repr(_value(value))
    except ValueError:  # Python prints no number of more than 4,300 digits, for that takes long.
        return f"<{named_type(value)} with a number too long to be shown>"


def _value(node: Any) -> Any:
    kind = type(node)
    if kind is NamedRef:
        return _named(node)
    if isinstance(node, dict):
        items = {key: _value(item) for key, item in node.items()}
        return items if kind is dict else OrderedDict(items)
    if kind in (list, tuple):
        return kind(map(_value, node))
    if kind is SizeRef:
        return _Shown(f"torch.Size({list(node.shape)})")
    if kind is DTypeRef:
        return _Shown(f"torch.{node.name}")
    if kind is DeviceRef:
        return _Shown(f"device({node.name!r})")
    return _Shown(f"<tensor {node.entry}>") if kind is TensorRef else node


def _named(node: NamedRef) -> Any:
    name, payload = node.name, node.payload
    if name == "scalar":
        code = _SCALARS.get(payload[0], "")
        fits = code and struct.calcsize(code) == len(payload[1])
        number = struct.unpack(code, payload[1])[0] if fits else payload[1].hex()
        return _Shown(f"{named_type(node)} {number}")
    if name in ("memory_format", "layout"):
        return _Shown(f"torch.{payload}")
    if name == "array":
        return _Shown(f"{named_type(node)} {_element_name(payload[1])} {payload[2].shape}")
    if name == "object":
        return _Shown(f"<{payload[0]}>")
    try:
        found = from_named(name, _value(payload))
    except FastckptError:
        return _Shown(f"{name}({_value(payload)!r})")
    if isinstance(found, Placeholder):
        if found.kind == "enum":
            return _Shown(f"<{found.name}.{found.content['name']}: {found.content['value']!r}>")
        if isinstance(found.content, dict):
            fields = ", ".join(f"{field}={value!r}" for field, value in found.content.items())
            return _Shown(f"{found.name}({fields})")
        return _Shown(f"{found.name}({found.content!r})")
    return found
