"""The part of the reference reader for trees (``SPEC.md``, section 9): their values, tensors among them, and errors."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy

# code: name, size of an element, the numpy type that holds its bits
# fmt: off
DTYPES = {
    1: ("bool", 1, "?"), 2: ("uint8", 1, "u1"), 3: ("int8", 1, "i1"), 4: ("uint16", 2, "<u2"),
    5: ("int16", 2, "<i2"), 6: ("uint32", 4, "<u4"), 7: ("int32", 4, "<i4"), 8: ("uint64", 8, "<u8"),
    9: ("int64", 8, "<i8"), 16: ("float16", 2, "<f2"), 17: ("bfloat16", 2, "<u2"), 18: ("float32", 4, "<f4"),
    19: ("float64", 8, "<f8"), 24: ("complex32", 4, "<u4"), 25: ("complex64", 8, "<c8"),
    26: ("complex128", 16, "<c16"), 32: ("float8_e4m3fn", 1, "u1"), 33: ("float8_e4m3fnuz", 1, "u1"),
    34: ("float8_e5m2", 1, "u1"), 35: ("float8_e5m2fnuz", 1, "u1"), 36: ("float8_e8m0fnu", 1, "u1"),
    40: ("float4_e2m1fn_x2", 1, "u1"),
}
# fmt: on


class Refused(Exception):
    """The file is not used, and this says why."""


class NotACheckpoint(Refused):
    """It is some other file."""


class Unsupported(Refused):
    """It needs something that the format does not know."""


class Damaged(Refused):
    """Its bytes are not what was written, or contradict each other."""


@dataclass(eq=False)
class Tensor:
    """One entry. Elements are raw: bfloat16, float8 and complex32 are unsigned integers, conj and neg not applied."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    storage: int
    flags: int
    itemsize: int
    code: str
    memory: bytes | None = field(default=None, repr=False)

    @property
    def span(self) -> tuple[int, int]:
        """The bytes of the storage from its first to its last."""
        if 0 in self.shape:
            return 0, 0
        last = sum((extent - 1) * stride for extent, stride in zip(self.shape, self.stride, strict=True))
        return self.storage_offset * self.itemsize, (self.storage_offset + last + 1) * self.itemsize

    @property
    def array(self) -> numpy.ndarray:
        """The elements, as a view of the storage."""
        assert self.memory is not None
        if 0 in self.shape:
            return numpy.empty(self.shape, self.code)
        begin, end = self.span
        dims = zip(self.shape, self.stride, strict=True)
        strides = [stride * self.itemsize if extent > 1 else 0 for extent, stride in dims]
        elements = numpy.frombuffer(self.memory[begin:end], self.code)
        return numpy.lib.stride_tricks.as_strided(elements, self.shape, strides, writeable=False)

    def described(self) -> tuple[Any, ...]:
        """All that an entry states."""
        return self.name, self.dtype, self.shape, self.stride, self.storage_offset, self.storage, self.flags


@dataclass(frozen=True)
class Ordered:
    """An ordered dict."""

    pairs: dict[Any, Any]
    attributes: dict[str, Any] | None


@dataclass(frozen=True)
class Plain:
    """A dtype (its name), a size (a tuple) or a device (its name)."""

    kind: str
    value: Any


def need(condition: bool, message: str, error: type[Refused] = Damaged) -> None:
    """Refuses the file unless the condition holds."""
    if not condition:
        raise error(message)


@dataclass(frozen=True)
class Named:
    """A named value (section 9.1)."""

    name: str
    payload: Any


# The payloads of section 9.1, written down as there: "any", "str", ..., "{}" for a dict with str keys, [x], (x, y).
PAIRS = [("key", "any")]
CLOCK = ("str", "int", "int or None", "str or None")
FORMS: dict[str, Any] = {
    "object": ("str", "{}"), "tensor": ("tensor", "{}"), "array": ("tensor or bytes", "str", "size", "bool"),
    "scalar": ("str", "bytes"), "set": ["key"], "frozenset": ["key"], "deque": (["any"], "int or None"), "dict": PAIRS,
    "ordered_dict": (PAIRS, "{}"), "counter": PAIRS, "defaultdict": (PAIRS, "str or None"), "bytearray": "bytes",
    "namespace": ("str", "{}"), "path": ("str", "str"), "datetime": CLOCK, "date": "str", "time": CLOCK,
    "timedelta": ("int", "int", "int"), "timezone": ("int", "str or None"), "range": ("int", "int", "int"),
    "slice": ("any", "any", "any"), "fraction": ("int", "int"), "decimal": "str", "enum": ("str", "str", "any"),
    "namedtuple": ("str", "{}"), "dataclass": ("str", "{}"), "memory_format": "str", "layout": "str",
    "generator": ("str", "tensor"), "sparse": ("str", "{}", "size", "bool", "int"), "quantized": ("str", "{}", "int"),
    "nested": ("str", ["any"], "int"), "meta": ("str", "size", "size", "int"),
    "subclass": ("str", "{}", "any", "size", "size", "int"),
}  # fmt: skip


def holds_tensor(value: Any) -> bool:
    """Whether a tensor is anywhere in a node."""
    if isinstance(value, Named):
        return holds_tensor(value.payload)
    if isinstance(value, Ordered):
        return holds_tensor(value.pairs) or holds_tensor(value.attributes)
    if isinstance(value, dict):
        return any(map(holds_tensor, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(holds_tensor, value)))


def has_form(value: Any, form: Any, lost: bool) -> bool:
    """Whether a payload has the form of its name; with ``lost``, a tensor may be gone."""
    if isinstance(form, list):
        return type(value) is list and all(has_form(item, form[0], lost) for item in value)
    if isinstance(form, tuple):
        return (
            type(value) is tuple
            and len(value) == len(form)
            and all(has_form(v, f, lost) for v, f in zip(value, form, strict=True))
        )
    if form == "{}":
        return type(value) is dict and all(isinstance(key, str) for key in value)
    if form.startswith("tensor"):
        return isinstance(value, Tensor) or (lost and value is None) or ("bytes" in form and type(value) is bytes)
    if form == "size":
        return isinstance(value, Plain) and value.kind == "size"
    if form.endswith(" or None") and value is None:
        return True
    if form == "key":
        return not holds_tensor(value)
    types = {"str": str, "int": int, "bool": bool, "bytes": bytes}
    return form == "any" or type(value) is types[form.removesuffix(" or None")]


def tree(data: bytes, entries: list[Any]) -> Any:
    """Decodes a tree (section 9)."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        need(count <= len(data) - at, "the tree is cut off")
        at += count
        return data[at - count : at]

    def leb() -> int:
        number = 0
        for shift in range(0, 70, 7):
            (byte,) = take(1)
            number |= (byte & 127) << shift
            if byte < 128:
                need(number < 1 << 64, "a number in the tree is too large")
                return number
        raise Damaged("a number in the tree is too long")

    def text() -> str:
        try:
            return take(leb()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged("a text in the tree is not UTF-8") from error

    def pairs(depth: int) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        count = leb()
        need(2 * count <= len(data) - at, "the tree is cut off")
        for _ in range(count):
            begin = at
            key = node(depth + 1)
            need(data[begin] in (3, 6) and key not in result, "a key is neither str nor int, or stands there twice")
            need(isinstance(key, str) or abs(key) < 1 << 2047, "an int key is too large")
            result[key] = node(depth + 1)
        return result

    def node(depth: int) -> Any:
        need(depth <= 128, "the tree is too deep")
        tag = take(1)[0]
        if tag < 3:
            return (None, False, True)[tag]
        if tag == 3:
            return int.from_bytes(take(leb()), "little", signed=True)
        if tag == 4:
            return struct.unpack("<d", take(8))[0]
        if tag == 5:
            return complex(*struct.unpack("<2d", take(16)))
        if tag == 6:
            return text()
        if tag == 7:
            return take(leb())
        if tag in (8, 9):
            count = leb()
            need(count <= len(data) - at, "the tree is cut off")
            items = [node(depth + 1) for _ in range(count)]
            return items if tag == 8 else tuple(items)
        if tag == 10:
            return pairs(depth)
        if tag == 11:
            result, attributes = pairs(depth), node(depth + 1)
            names = list(attributes) if type(attributes) is dict else []
            need(attributes is None or type(attributes) is dict, "the attributes are no dict")
            need(all(isinstance(name, str) for name in names), "the attributes have a name that is no str")
            return Ordered(result, attributes)
        if tag == 12:
            number = leb()
            need(number < len(entries), f"entry {number} does not exist")
            return entries[number]
        if tag == 13:
            code = take(1)[0]
            need(code in DTYPES, f"unknown dtype {code}", Unsupported)
            return Plain("dtype", DTYPES[code][0])
        if tag == 14:
            count = leb()
            need(count <= len(data) - at, "the tree is cut off")
            extents = tuple(leb() for _ in range(count))
            need(all(extent < 1 << 63 for extent in extents), "an extent is too large")
            return Plain("size", extents)
        if tag == 15:
            return Plain("device", text())
        need(tag == 16, f"unknown tag {tag}", Unsupported)
        name = text()
        payload = node(depth + 1)
        need("." in name or name in FORMS, f"unknown named value {name!r}", Unsupported)
        need("." in name or has_form(payload, FORMS[name], None in entries), f"{name!r} has another payload")
        return Named(name, payload)

    root = node(0)
    need(at == len(data), "something stands behind the tree")
    return root
