"""A state as the pickle that ``torch.load`` reads, written without torch.

Protocol 2, as torch itself uses; only the globals that ``weights_only`` loads allow.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from fastckpt.constants import (
    ENTRY_FLAG_CONJ,
    ENTRY_FLAG_NEG,
    ENTRY_FLAG_PARAMETER,
    ENTRY_FLAG_REQUIRES_GRAD,
)
from fastckpt.errors import UnsupportedStateError
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import AttributedDict, DeviceRef, DTypeRef, SizeRef, TensorRef

_STORAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "float64": "DoubleStorage",
        "float32": "FloatStorage",
        "float16": "HalfStorage",
        "bfloat16": "BFloat16Storage",
        "int64": "LongStorage",
        "int32": "IntStorage",
        "int16": "ShortStorage",
        "int8": "CharStorage",
        "uint8": "ByteStorage",
        "bool": "BoolStorage",
        "complex64": "ComplexFloatStorage",
        "complex128": "ComplexDoubleStorage",
    }
)
"""The storage classes that torch has; other element types are stored untyped."""


def pickle_state(tree: Any, entries: Sequence[Entry], storage_sizes: Sequence[int]) -> bytes:
    """The pickle of a state whose storage ``n`` is the record ``data/n``.

    Raises:
        UnsupportedStateError: A value that the format cannot hold.
    """
    writer = _PickleWriter(entries, storage_sizes)
    writer.out += b"\x80\x02"
    writer.value(tree)
    writer.out += b"."
    return bytes(writer.out)


class _PickleWriter:
    def __init__(self, entries: Sequence[Entry], storage_sizes: Sequence[int]) -> None:
        self.out = bytearray()
        self.entries = entries
        self.sizes = storage_sizes
        dtypes: dict[int, set[str]] = {}
        for entry in entries:
            dtypes.setdefault(entry.storage, set()).add(entry.dtype)
        # torch gives a storage the type it is first named with, so one with two types is named without.
        self.mixed = {storage for storage, found in dtypes.items() if len(found) > 1}

    def value(self, value: Any) -> None:
        kind = type(value)
        if kind is TensorRef:
            self.tensor(self.entries[value.entry])
        elif value is None:
            self.out += b"N"
        elif kind is bool:
            self.out += b"\x88" if value else b"\x89"
        elif kind is int:
            self.integer(value)
        elif kind is float:
            self.out += b"G" + struct.pack(">d", value)
        elif kind is str:
            self.text(value)
        elif kind is bytes:
            self.bytes_(value)
        elif kind is complex:
            self.call("__builtin__", "complex", value.real, value.imag)
        elif kind is list:
            self.out += b"]("
            for item in value:
                self.value(item)
            self.out += b"e"
        elif kind is tuple:
            self.tuple_(value)
        elif isinstance(value, dict):
            self.dict_(value)
        elif kind is DTypeRef:
            self.global_("torch", value.name)
        elif kind is SizeRef:
            self.call("torch", "Size", tuple(value.shape))
        elif kind is DeviceRef:
            name, _, index = value.name.partition(":")
            self.call("torch", "device", *((name, int(index)) if index.isdecimal() else (value.name,)))
        else:
            raise UnsupportedStateError(f"a .pt file cannot be written with a {kind.__name__} in it")

    def integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
            return
        raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
        self.out += b"\x8a" + bytes([len(raw)]) if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw))
        self.out += raw

    def text(self, value: str) -> None:
        raw = value.encode("utf-8", "surrogatepass")
        self.out += b"X" + struct.pack("<I", len(raw)) + raw

    def bytes_(self, value: bytes) -> None:
        self.call("_codecs", "encode", value.decode("latin1"), "latin1")

    def tuple_(self, items: Sequence[Any]) -> None:
        self.out += b"("
        for item in items:
            self.value(item)
        self.out += b"t"

    def dict_(self, value: dict[Any, Any]) -> None:
        if type(value) is dict:
            self.out += b"}"
        else:
            self.call("collections", "OrderedDict")
        self.out += b"("
        for key, item in value.items():
            self.value(key)
            self.value(item)
        self.out += b"u"
        attributes = value.attributes if type(value) is AttributedDict else None
        if attributes:
            self.value(dict(attributes))
            self.out += b"b"

    def global_(self, module: str, name: str) -> None:
        self.out += f"c{module}\n{name}\n".encode("ascii")

    def call(self, module: str, name: str, *args: Any) -> None:
        self.global_(module, name)
        self.tuple_(args)
        self.out += b"R"

    def tensor(self, entry: Entry) -> None:
        if entry.flags & ENTRY_FLAG_PARAMETER:
            self.global_("torch._utils", "_rebuild_parameter")
            self.out += b"("
            self.plain_tensor(entry._replace(flags=entry.flags & ~ENTRY_FLAG_REQUIRES_GRAD))
            self.value(bool(entry.flags & ENTRY_FLAG_REQUIRES_GRAD))
            self.call("collections", "OrderedDict")
            self.out += b"tR"
        else:
            self.plain_tensor(entry)

    def plain_tensor(self, entry: Entry) -> None:
        typed = self.is_typed(entry)
        self.global_("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self.out += b"("
        self.storage(entry)
        self.value(entry.storage_offset)
        self.tuple_(entry.shape)
        self.tuple_(entry.stride)
        self.value(bool(entry.flags & ENTRY_FLAG_REQUIRES_GRAD))
        self.call("collections", "OrderedDict")
        if not typed:
            self.value(DTypeRef(entry.dtype))
        lazy = {"conj": ENTRY_FLAG_CONJ, "neg": ENTRY_FLAG_NEG}
        metadata = {name: True for name, flag in lazy.items() if entry.flags & flag}
        if metadata:
            self.value(metadata)
        self.out += b"tR"

    def is_typed(self, entry: Entry) -> bool:
        whole = self.sizes[entry.storage] % entry.itemsize == 0
        return entry.dtype in _STORAGES and whole and entry.storage not in self.mixed

    def storage(self, entry: Entry) -> None:
        """The persistent id by which torch finds a storage."""
        size = self.sizes[entry.storage]
        self.out += b"("
        self.value("storage")
        if self.is_typed(entry):
            self.global_("torch", _STORAGES[entry.dtype])
            count = size // entry.itemsize
        else:
            self.global_("torch.storage", "UntypedStorage")
            count = size
        self.value(str(entry.storage))
        self.value("cpu")
        self.value(count)
        self.out += b"tQ"
