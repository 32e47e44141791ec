"""What an object that is not understood is made of, as bytes that can be compared.

The graph of what the pickle puts into an object is written down in the order
in which the pickle names it. Whatever was written before is a reference, so
the cost is in proportion to the pickle, and an object may contain itself. Two
objects with equal bytes are the same if the storages they name are, one by one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.constants import MAX_TREE_DEPTH
from fastckpt.foreign.model import Opaque
from fastckpt.foreign.torch_objects import Function, Storage, StorageType, Tensor, UnknownStorage
from fastckpt.layout.tree import AttributedDict, DeviceRef, DTypeRef, SizeRef

_LONG: Final = 32
"""Bytes of a text or number from which on it is written once, and referred to later."""
_UNORDERED: Final = ("builtins.set", "builtins.frozenset")


class ObjectParts(NamedTuple):
    """One object.

    Attributes:
        digest: SHA-256 of what it is made of; None if it is nested too deep to be gone through.
        storages: Keys of the storages that it names, in order.
    """

    digest: bytes | None
    storages: list[str]


def object_parts(objects: Iterable[tuple[str, object]]) -> dict[str, ObjectParts]:
    """The parts of every object by its place; of several at one place, the later ones get a number."""
    writer = _Writer()
    found: dict[str, ObjectParts] = {}
    times: dict[str, int] = {}
    for place, value in objects:
        times[place] = times.get(place, 0) + 1
        name = place if times[place] == 1 else f"{place} ({times[place]})"
        found[name] = writer.parts(name, value)
    return found


class _TooDeep(Exception):
    pass


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self.place = ""
        self.storages: dict[str, int] = {}
        # What was written, and where first: the objects by identity, long texts by what they say.
        self.seen: dict[object, bytes] = {}
        self.kept: list[object] = []
        self.count = 0

    def parts(self, place: str, value: object) -> ObjectParts:
        self.out, self.place, self.storages, self.count = bytearray(), place, {}, 0
        try:
            self.write(value, 0)
        except _TooDeep:
            return ObjectParts(None, list(self.storages))
        return ObjectParts(hashlib.sha256(self.out).digest(), list(self.storages))

    def token(self, tag: str, raw: bytes = b"") -> None:
        self.out += f"{tag} {len(raw)} ".encode() + raw

    def is_reference(self, key: object, value: object) -> bool:
        """Write a reference to what was written before; else remember it."""
        before = self.seen.get(key)
        if before is not None:
            self.token("again", before)
            return True
        self.seen[key] = f"{self.count} of {self.place}".encode("utf-8", "surrogatepass")
        self.kept.append(value)  # So that no other object gets its identity.
        self.count += 1
        return False

    def storage(self, key: str) -> bytes:
        return b"%d" % self.storages.setdefault(key, len(self.storages))

    def write(self, value: Any, depth: int) -> None:
        kind = type(value)
        if value is None or kind is bool or kind is float or kind is complex:
            self.token(kind.__name__, _number(value))
        elif kind is int:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(raw) < _LONG or not self.is_reference(id(value), value):
                self.token("int", raw)
        elif kind is str or kind is bytes:
            if len(value) < _LONG or not self.is_reference(value, value):
                self.token(kind.__name__, value.encode("utf-8", "surrogatepass") if kind is str else value)
        elif kind in (DTypeRef, SizeRef, DeviceRef):
            self.token(kind.__name__, repr(value).encode())
        elif kind in (Function, StorageType):
            self.token("global", value.global_name.encode("utf-8", "surrogatepass"))
        elif kind is UnknownStorage:
            self.token("bytes", self.storage(value.key))
        elif depth > MAX_TREE_DEPTH:
            raise _TooDeep
        elif not self.is_reference(id(value), value):
            self.compound(value, depth + 1)

    def compound(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is Storage:
            numbers = f"{value.type.global_name} {value.nbytes} {value.start}".encode()
            self.token("storage", self.storage(value.key) + b" " + numbers)
        elif kind is Tensor:
            self.token("tensor", f"{value.dtype} {value.offset} {value.shape} {value.stride} {value.flags}".encode())
            self.write(value.storage, depth)
            self.items(value.rest, depth)
        elif kind is Opaque:
            self.token("object", value.global_name.encode("utf-8", "surrogatepass"))
            if value.global_name in _UNORDERED:
                self.unordered(value.parts, depth)
            else:
                self.items(value.parts, depth)
        elif isinstance(value, dict):
            self.token("dict" if kind is dict else "OrderedDict", b"%d" % len(value))
            for key, item in value.items():
                self.write(key, depth)
                self.write(item, depth)
            if kind is AttributedDict:
                self.write(vars(value).get("attributes"), depth)
        else:
            self.token(kind.__name__)
            self.items(value, depth)

    def items(self, values: Iterable[object], depth: int) -> None:
        self.token("items")
        for value in values:
            self.write(value, depth)
        self.token("end")

    def unordered(self, values: Sequence[Any], depth: int) -> None:
        """The items of a set, which a pickle has in another order each time."""
        if len(values) == 2 and type(values[1]) is tuple and len(values[1]) == 1 and type(values[1][0]) is list:
            # Up to protocol 3: set([...]). A list can be in no set, so these are not items.
            values = values[1][0]
            if self.is_reference(id(values), values):
                return
        whole, items = self.out, []
        for value in values:
            self.out = bytearray()
            self.write(value, depth)
            items.append(bytes(self.out))
        self.out = whole
        self.items(sorted(items), depth)


def _number(value: Any) -> bytes:
    if type(value) is complex:
        return struct.pack("<dd", value.real, value.imag)
    return struct.pack("<d", value) if type(value) is float else str(value).encode()
