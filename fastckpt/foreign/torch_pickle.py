"""A state as the pickle that ``torch.save`` writes for it, byte for byte, without torch.

Protocol 2, as torch itself uses; for tensors and plain values only the globals that ``weights_only`` loads allow.
Python's pickler numbers what it writes and names it by number when it stands again; so does this one. Which values of a
program are one object is not known here: equal texts, bytes and tuples of numbers count as one, as constants of a
program are; containers never.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from fastckpt.constants import (
    ENTRY_FLAG_CONJ,
    ENTRY_FLAG_NEG,
    ENTRY_FLAG_PARAMETER,
    ENTRY_FLAG_REQUIRES_GRAD,
)
from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.pickle_made import Global, Made, StorageAs
from fastckpt.foreign.pickle_named import ReadArray, made, unwritable
from fastckpt.layout.encode_tree import all_refusals
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import AttributedDict, DeviceRef, DTypeRef, NamedRef, SizeRef, TensorRef, path_text

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

_BATCH: Final = 1000
"""Items of a list or dict that Python's pickler writes before it closes them with one opcode."""
_SHORT_TUPLES: Final = (b")", b"\x85", b"\x86", b"\x87")
"""The opcodes of tuples of up to three items."""


def pickle_state(
    tree: Any, entries: Sequence[Entry], storage_sizes: Sequence[int], *, read_array: ReadArray | None = None
) -> bytes:
    """The pickle of a state whose storage ``n`` is the record ``data/n``.

    Args:
        tree: The state.
        entries: Its tensors.
        storage_sizes: Bytes of the storages that they lie in.
        read_array: Gives the bytes of an array's tensor, which go into the pickle: no storage of a ``.pt`` is an
            array. None where there is none, or none shall be written.

    Raises:
        UnsupportedStateError: Values that the format cannot hold: all of them are listed, by path.
    """
    refused = [
        UnsupportedStateError(f"{path_text(path)}: a .pt file cannot be written with this in it: {what}")
        for path, what in unwritable(tree, arrays=read_array is not None)
    ]
    if refused:
        error = all_refusals(refused)
        error.next_step = "write a .fckpt file instead"
        raise error
    writer = _PickleWriter(entries, storage_sizes, read_array)
    writer.out += b"\x80\x02"
    writer.value(tree)
    writer.out += b"."
    return bytes(writer.out)


class _PickleWriter:
    def __init__(self, entries: Sequence[Entry], storage_sizes: Sequence[int], read_array: ReadArray | None) -> None:
        self.out = bytearray()
        self.read_array = read_array
        self.entries = entries
        self.sizes = storage_sizes
        self.memo: dict[object, int] = {}
        self.written = 0
        self.kinds: dict[int, str | None] = {}
        dtypes: dict[int, set[str]] = {}
        for entry in entries:
            dtypes.setdefault(entry.storage, set()).add(entry.dtype)
        # torch gives a storage the type it is first named with, so one with two types is named without.
        self.mixed = {storage for storage, found in dtypes.items() if len(found) > 1}

    # --- numbering -------------------------------------------------------------

    def number(self, key: object = None) -> None:
        """Number what was just written; with a ``key``, so that `known` finds it again."""
        at = self.written
        self.written += 1
        if key is not None:
            self.memo[key] = at
        self.out += b"q" + bytes((at,)) if at < 256 else b"r" + struct.pack("<I", at)

    def known(self, key: object) -> bool:
        """Name what was written under this ``key`` by its number; False if nothing was."""
        at = self.memo.get(key)
        if at is None:
            return False
        self.out += b"h" + bytes((at,)) if at < 256 else b"j" + struct.pack("<I", at)
        return True

    # --- values ----------------------------------------------------------------

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
            self.out += b"]"
            self.number()
            self.items(((item,) for item in value), b"a", b"e", alone=len(value) == 1)
        elif kind is tuple:
            self.tuple_(value, shared=all(type(item) in (int, float) for item in value))
        elif isinstance(value, dict):
            self.dict_(value)
        elif kind is DTypeRef:
            self.global_("torch", value.name)
        elif kind is SizeRef:
            self.global_("torch", "Size")
            self.tuple_(value.shape)
            self.close_tuple(1)
            self.out += b"R"
            self.number()
        elif kind is DeviceRef:
            name, _, index = value.name.partition(":")
            self.call("torch", "device", *((name, int(index)) if index.isdecimal() else (value.name,)))
        elif kind is NamedRef and value.name == "tensor":
            ref, attributes = value.payload
            self.tensor(self.entries[ref.entry], attributes)
        elif kind is NamedRef and value.name == "dict":
            self.dict_of(value.payload)
        elif kind is NamedRef:
            self.value(made(value, self.entries, self.read_array))
        elif kind is Global:
            self.global_(value.module, value.name)
        elif kind is Made:
            self.made(value)
        elif kind is StorageAs:
            self.storage(value.number, value.kind, value.itemsize)
        else:
            raise UnsupportedStateError(f"a .pt file cannot be written with this in it: {kind.__name__}")

    def made(self, value: Made) -> None:
        """What is made by a call, in the order in which Python's pickler writes it."""
        self.value(value.by)
        self.tuple_(value.args)
        self.out += b"\x81" if value.bare else b"R"
        self.number()
        self.items(((item,) for item in value.items), b"a", b"e", alone=len(value.items) % _BATCH == 1)
        self.items(value.pairs, b"s", b"u", alone=len(value.pairs) % _BATCH == 1)
        if value.state is not None:
            self.value(value.state)
            self.out += b"b"

    def integer(self, value: int) -> None:
        if 0 <= value < 2**8:
            self.out += b"K" + bytes((value,))
        elif 0 <= value < 2**16:
            self.out += b"M" + struct.pack("<H", value)
        elif -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            # -2**39 fits into as many bytes as 2**39 - 1.
            bits = (value if value >= 0 else ~value).bit_length()
            raw = value.to_bytes(bits // 8 + 1, "little", signed=True)
            self.out += b"\x8a" + bytes([len(raw)]) if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw))
            self.out += raw

    def text(self, value: str, key: object = None) -> None:
        """A text; ``key`` tells it from equal texts that are other objects."""
        key = value if key is None else key
        if self.known(key):
            return
        raw = value.encode("utf-8", "surrogatepass")
        self.out += b"X" + struct.pack("<I", len(raw)) + raw
        self.number(key)

    def bytes_(self, value: bytes) -> None:
        key = ("bytes", value)
        if self.known(key):
            return
        # Python would write a call of bytes() for none, which a weights_only load refuses.
        self.global_("_codecs", "encode")
        self.text(value.decode("latin1"), ("text of", value))
        self.text("latin1")
        self.close_tuple(2)
        self.out += b"R"
        self.number(key)

    def tuple_(self, items: Sequence[Any], *, shared: bool = False) -> None:
        # By text: 1 and 1.0 are equal.
        key = ("tuple", repr(items)) if shared and items else None
        if key is not None and self.known(key):
            return
        self.out += b"(" if len(items) >= len(_SHORT_TUPLES) else b""
        for item in items:
            self.value(item)
        self.close_tuple(len(items), key)

    def close_tuple(self, count: int, key: object = None) -> None:
        self.out += _SHORT_TUPLES[count] if count < len(_SHORT_TUPLES) else b"t"
        if count:
            self.number(key)

    def dict_(self, value: dict[Any, Any]) -> None:
        if type(value) is dict:
            self.dict_of(value.items())
            return
        self.call("collections", "OrderedDict")
        self.items(value.items(), b"s", b"u", alone=len(value) % _BATCH == 1)
        attributes = value.attributes if type(value) is AttributedDict else None
        if attributes:
            self.value(dict(attributes))
            self.out += b"b"

    def dict_of(self, pairs: Collection[tuple[Any, Any]]) -> None:
        self.out += b"}"
        self.number()
        self.items(pairs, b"s", b"u", alone=len(pairs) == 1)

    def items(self, items: Iterable[tuple[Any, ...]], one: bytes, many: bytes, *, alone: bool) -> None:
        """The items of a list or dict, in batches; if ``alone``, a batch of one is closed with its own opcode."""
        rest = iter(items)
        while batch := list(islice(rest, _BATCH)):
            single = alone and len(batch) == 1
            self.out += b"" if single else b"("
            for item in batch:
                for part in item:
                    self.value(part)
            self.out += one if single else many

    def global_(self, module: str, name: str) -> None:
        line = f"c{module}\n{name}\n".encode("ascii")
        if not self.known(line):
            self.out += line
            self.number(line)

    def call(self, module: str, name: str, *args: Any) -> None:
        self.global_(module, name)
        self.tuple_(args)
        self.out += b"R"
        self.number()

    # --- tensors ---------------------------------------------------------------

    def tensor(self, entry: Entry, attributes: dict[str, Any] | None = None) -> None:
        if entry.flags & ENTRY_FLAG_PARAMETER:
            self.global_("torch._utils", "_rebuild_parameter_with_state" if attributes else "_rebuild_parameter")
            self.out += b"(" if attributes else b""
            self.tensor_function(entry)
            self.tensor_arguments(entry._replace(flags=entry.flags & ~ENTRY_FLAG_REQUIRES_GRAD))
            self.reduce()
            self.value(bool(entry.flags & ENTRY_FLAG_REQUIRES_GRAD))
            self.call("collections", "OrderedDict")
            if attributes:
                self.value(attributes)
            self.close_tuple(4 if attributes else 3)
        elif attributes:
            self.global_("torch._tensor", "_rebuild_from_type_v2")
            self.out += b"("
            self.tensor_function(entry)
            self.global_("torch", "Tensor")
            self.tensor_arguments(entry)
            self.value(attributes)
            self.close_tuple(4)
        else:
            self.tensor_function(entry)
            self.tensor_arguments(entry)
        self.reduce()

    def reduce(self) -> None:
        self.out += b"R"
        self.number()

    def tensor_function(self, entry: Entry) -> None:
        self.global_("torch._utils", "_rebuild_tensor_v2" if self.is_typed(entry) else "_rebuild_tensor_v3")

    def tensor_arguments(self, entry: Entry) -> None:
        self.out += b"("
        if self.is_typed(entry):
            self.storage(entry.storage, _STORAGES[entry.dtype], entry.itemsize)
        else:
            self.storage(entry.storage, None, 1)
        self.value(entry.storage_offset)
        self.tuple_(entry.shape)
        self.tuple_(entry.stride)
        self.value(bool(entry.flags & ENTRY_FLAG_REQUIRES_GRAD))
        self.call("collections", "OrderedDict")
        if not self.is_typed(entry):
            self.value(DTypeRef(entry.dtype))
        lazy = {"conj": ENTRY_FLAG_CONJ, "neg": ENTRY_FLAG_NEG}
        metadata = {name: True for name, flag in lazy.items() if entry.flags & flag}
        if metadata:
            self.value(metadata)
        self.out += b"t"
        self.number()

    def is_typed(self, entry: Entry) -> bool:
        whole = self.sizes[entry.storage] % entry.itemsize == 0
        return entry.dtype in _STORAGES and whole and entry.storage not in self.mixed

    def storage(self, number: int, kind: str | None, itemsize: int) -> None:
        """The persistent id by which torch finds a storage, seen as a class that torch has; None is untyped."""
        # torch gives a storage that it has read the class by which that was first named.
        if self.kinds.setdefault(number, kind) != kind:
            raise UnsupportedStateError("a .pt cannot hold a quantized tensor and integers on the same memory")
        self.out += b"("
        self.text("storage")
        self.global_(*(("torch", kind) if kind is not None else ("torch.storage", "UntypedStorage")))
        self.text(str(number), ("storage", number))
        self.text("cpu")
        self.value(self.sizes[number] // itemsize)
        self.out += b"t"
        self.number()
        self.out += b"Q"
