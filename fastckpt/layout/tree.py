"""The nesting of a state, as bytes.

A state is a tree of dicts, lists, tuples and plain values whose tensors are
references into the entry table. Each node is a tag byte followed by what the
tag needs; lengths are unsigned LEB128. Torch's own small objects appear as
references too (`DTypeRef`, `SizeRef`, `DeviceRef`), so this module, like all
of the layout, works where torch is not installed.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from fastckpt.constants import MAX_INT_KEY_SIZE, MAX_TREE_DEPTH
from fastckpt.errors import DamagedError, UnsupportedStateError, UnsupportedVersionError
from fastckpt.layout.dtypes import BY_CODE, BY_NAME
from fastckpt.layout.named import SHAPES, NamedRef, SizeRef, TensorRef, fits, is_registered

__all__ = [
    "AttributedDict",
    "DTypeRef",
    "DeviceRef",
    "NamedRef",
    "Path",
    "SizeRef",
    "TensorRef",
    "decode_tree",
    "encode_tree",
    "path_text",
    "walk_tree",
]

Path = tuple[object, ...]
"""The keys and indices that lead from the root of a state to a node."""


@dataclass(frozen=True, slots=True)
class DTypeRef:
    """A ``torch.dtype``, by its torch name (``"bfloat16"``)."""

    name: str


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """A ``torch.device``, by its string form (``"cuda:0"``)."""

    name: str


class AttributedDict(OrderedDict[Any, Any]):
    """An OrderedDict that carried attributes, such as the ``_metadata`` of ``Module.state_dict()``.

    ``attributes`` maps attribute name to value. The tensor layer turns it into
    a plain ``OrderedDict`` with the attributes set.
    """

    attributes: dict[str, Any]


TAG_NONE: Final = 0
TAG_FALSE: Final = 1
TAG_TRUE: Final = 2
TAG_INT: Final = 3
TAG_FLOAT: Final = 4
TAG_COMPLEX: Final = 5
TAG_STR: Final = 6
TAG_BYTES: Final = 7
TAG_LIST: Final = 8
TAG_TUPLE: Final = 9
TAG_DICT: Final = 10
TAG_ORDERED_DICT: Final = 11
TAG_TENSOR: Final = 12
TAG_DTYPE: Final = 13
TAG_SIZE: Final = 14
TAG_DEVICE: Final = 15
TAG_NAMED_VALUE: Final = 16

_STR: Final = bytes((TAG_STR,))
_FLOAT = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")


def path_text(path: Path) -> str:
    """How a place inside a state is shown to a person: ``state[0]['exp_avg']``."""
    return "state" + "".join(f"[{key!r}]" for key in path)


_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict)
_STORABLE: Final = frozenset((*_PLAIN, AttributedDict, TensorRef, DTypeRef, SizeRef, DeviceRef, NamedRef))


class _Encoder:
    def __init__(self, resolve: Callable[[Any, Path], object]) -> None:
        self.out = bytearray()
        self.resolve = resolve
        self.open: set[int] = set()

    def size(self, value: int) -> None:
        while value > 0x7F:
            self.out.append(value & 0x7F | 0x80)
            value >>= 7
        self.out.append(value)

    def text(self, tag: int, value: str, path: Path) -> None:
        try:
            raw = value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UnsupportedStateError(
                f"{path_text(path)}: the text {value!r} is not valid Unicode ({error.reason})",
                next_step="replace the lone surrogate before saving",
            ) from None
        self.out.append(tag)
        self.size(len(raw))
        self.out += raw

    def node(self, value: Any, path: Path) -> None:
        out = self.out
        kind = type(value)
        if kind not in _STORABLE:
            resolved = self.resolve(value, path)
            kind = type(resolved)
            if kind not in _STORABLE:
                raise UnsupportedStateError(f"{path_text(path)}: cannot store {kind.__module__}.{kind.__qualname__}")
            value = resolved
        if kind is TensorRef:
            out.append(TAG_TENSOR)
            self.size(value.entry)
        elif value is None:
            out.append(TAG_NONE)
        elif kind is bool:
            out.append(TAG_TRUE if value else TAG_FALSE)
        elif kind is int:
            raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
            out.append(TAG_INT)
            self.size(len(raw))
            out += raw
        elif kind is float:
            out.append(TAG_FLOAT)
            out += _FLOAT.pack(value)
        elif kind is complex:
            out.append(TAG_COMPLEX)
            out += _COMPLEX.pack(value.real, value.imag)
        elif kind is str:
            self.text(TAG_STR, value, path)
        elif kind is bytes:
            out.append(TAG_BYTES)
            self.size(len(value))
            out += value
        elif kind in (list, tuple, dict, OrderedDict, AttributedDict):
            self.container(value, kind, path)
        elif kind is DTypeRef:
            out += bytes((TAG_DTYPE, BY_NAME[value.name].code))
        elif kind is SizeRef:
            if any(extent < 0 for extent in value.shape):
                raise UnsupportedStateError(
                    f"{path_text(path)}: cannot store a size with a negative extent: {value.shape}"
                )
            out.append(TAG_SIZE)
            self.size(len(value.shape))
            for extent in value.shape:
                self.size(extent)
        elif kind is NamedRef:
            self.named(value, path)
        else:
            self.text(TAG_DEVICE, value.name, path)

    def named(self, value: NamedRef, path: Path) -> None:
        if not fits(value.name, value.payload):
            raise UnsupportedStateError(f"{path_text(path)}: this is no {value.name!r}: {value.payload!r:.80}")
        if len(path) >= MAX_TREE_DEPTH:
            raise UnsupportedStateError(f"{path_text(path)[:200]}...: nested deeper than {MAX_TREE_DEPTH} levels")
        self.text(TAG_NAMED_VALUE, value.name, path)
        self.node(value.payload, (*path, value.name))

    def container(self, value: Any, kind: type, path: Path) -> None:
        if id(value) in self.open:
            raise UnsupportedStateError(f"{path_text(path)}: the state contains itself")
        if len(path) >= MAX_TREE_DEPTH:
            raise UnsupportedStateError(f"{path_text(path)[:200]}...: nested deeper than {MAX_TREE_DEPTH} levels")
        self.open.add(id(value))
        out = self.out
        if kind is list or kind is tuple:
            out.append(TAG_LIST if kind is list else TAG_TUPLE)
            self.size(len(value))
            for index, item in enumerate(value):
                self.node(item, (*path, index))
        else:
            out.append(TAG_DICT if kind is dict else TAG_ORDERED_DICT)
            self.size(len(value))
            for key, item in value.items():
                if type(key) is str:
                    self.text(TAG_STR, key, path)
                elif type(key) is int:
                    if key.bit_length() >= 8 * MAX_INT_KEY_SIZE:
                        raise UnsupportedStateError(
                            f"{path_text(path)}: cannot store an int key of more than {MAX_INT_KEY_SIZE} bytes"
                        )
                    self.node(key, path)
                else:
                    raise UnsupportedStateError(
                        f"{path_text(path)}: cannot store a dict key of type {type(key).__qualname__}: {key!r:.80}",
                        next_step="use str or int keys",
                    )
                self.node(item, (*path, key))
            if kind is not dict:
                attributes = value.attributes if kind is AttributedDict else vars(value)
                self.node(dict(attributes) if attributes else None, (*path, "__dict__"))
        self.open.discard(id(value))


def encode_tree(state: object, resolve: Callable[[Any, Path], object]) -> bytes:
    """Encode ``state``.

    Args:
        state: Any nesting of the storable types.
        resolve: Called with every object this module does not know (a tensor,
            a ``torch.dtype``, ...) and its path; returns the reference to store
            or raises.

    Raises:
        UnsupportedStateError: An object cannot be stored; names its path and type.
    """
    encoder = _Encoder(resolve)
    encoder.node(state, ())
    return bytes(encoder.out)


class _Decoder:
    def __init__(self, raw: bytes, entry_count: int) -> None:
        self.raw = raw
        self.at = 0
        self.entry_count = entry_count

    def bad(self, what: str) -> DamagedError:
        return DamagedError(f"the tree is not valid at its byte {self.at}: {what}")

    def unknown(self, what: str) -> UnsupportedVersionError:
        return UnsupportedVersionError(f"the tree has an unknown {what}", next_step="upgrade fastckpt")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.raw):
            raise self.bad(f"{count} bytes wanted, {len(self.raw) - self.at} left")
        piece = self.raw[self.at : end]
        self.at = end
        return piece

    def byte(self) -> int:
        at = self.at
        if at >= len(self.raw):
            raise self.bad("1 bytes wanted, 0 left")
        self.at = at + 1
        return self.raw[at]

    def size(self) -> int:
        value = self.byte()
        if value < 0x80:
            return value
        value &= 0x7F
        for shift in range(7, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value
        raise self.bad("a length of more than 64 bits")

    def count(self) -> int:
        # Every item takes at least one byte, so a count beyond what is left is a bomb.
        count = self.size()
        if count > len(self.raw) - self.at:
            raise self.bad(f"{count} items announced, {len(self.raw) - self.at} bytes left")
        return count

    def extent(self) -> int:
        extent = self.size()
        if extent >> 63:
            raise self.bad("an extent of more than 63 bits")
        return extent

    def text(self) -> str:
        try:
            return self.take(self.size()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"text is not UTF-8 ({error.reason})") from None

    def node(self, depth: int) -> Any:
        if depth > MAX_TREE_DEPTH:
            raise self.bad(f"nested deeper than {MAX_TREE_DEPTH} levels")
        tag = self.byte()
        if tag == TAG_TENSOR:
            entry = self.size()
            if entry >= self.entry_count:
                raise self.bad(f"entry {entry} of {self.entry_count}")
            return TensorRef(entry)
        if tag == TAG_NONE:
            return None
        if tag == TAG_FALSE:
            return False
        if tag == TAG_TRUE:
            return True
        if tag == TAG_INT:
            return int.from_bytes(self.take(self.size()), "little", signed=True)
        if tag == TAG_FLOAT:
            return _FLOAT.unpack(self.take(8))[0]
        if tag == TAG_COMPLEX:
            return complex(*_COMPLEX.unpack(self.take(16)))
        if tag == TAG_STR:
            return self.text()
        if tag == TAG_BYTES:
            return self.take(self.size())
        if tag == TAG_LIST:
            return [self.node(depth + 1) for _ in range(self.count())]
        if tag == TAG_TUPLE:
            return tuple([self.node(depth + 1) for _ in range(self.count())])
        if tag == TAG_DICT:
            return self.pairs({}, depth)
        if tag == TAG_ORDERED_DICT:
            return self.ordered_dict(depth)
        if tag == TAG_DTYPE:
            code = self.byte()
            if code not in BY_CODE:
                raise self.unknown(f"dtype code {code}")
            return DTypeRef(BY_CODE[code].name)
        if tag == TAG_SIZE:
            return SizeRef(tuple([self.extent() for _ in range(self.count())]))
        if tag == TAG_DEVICE:
            return DeviceRef(self.text())
        if tag == TAG_NAMED_VALUE:
            return self.named(depth)
        raise self.unknown(f"tag {tag}")

    def named(self, depth: int) -> NamedRef:
        name = self.text()
        payload = self.node(depth + 1)
        if not is_registered(name) and name not in SHAPES:
            raise self.unknown(f"named value {name!r:.80}")
        if not fits(name, payload):
            raise self.bad(f"the payload of {name!r} has another shape")
        return NamedRef(name, payload)

    def pairs(self, into: Any, depth: int) -> Any:
        for _ in range(self.count()):
            if self.raw[self.at : self.at + 1] == _STR:
                self.at += 1
                key: Any = self.text()
            else:
                key = self.node(depth + 1)
                if type(key) is not int:
                    raise self.bad(f"a dict key of type {type(key).__name__}")
                if key.bit_length() >= 8 * MAX_INT_KEY_SIZE:
                    raise self.bad(f"an int key of more than {MAX_INT_KEY_SIZE} bytes")
            if key in into:
                raise self.bad(f"the dict key {key!r} twice")
            into[key] = self.node(depth + 1)
        return into

    def ordered_dict(self, depth: int) -> Any:
        result = self.pairs(AttributedDict(), depth)
        attributes = self.node(depth + 1)
        if attributes is None:
            return OrderedDict(result)
        if type(attributes) is not dict or not all(type(name) is str for name in attributes):
            raise self.bad("the attributes of an ordered dict are not a dict with str keys")
        result.attributes = attributes
        return result


def decode_tree(raw: bytes, entry_count: int) -> Any:
    """Decode what `encode_tree` wrote; references (`TensorRef`, `DTypeRef`, ...) stay references.

    Args:
        raw: The tree's bytes, all of them.
        entry_count: Rows in the entry table; a reference beyond is damage.

    Raises:
        DamagedError: The bytes are not a tree.
        UnsupportedVersionError: It has a kind of node or element type of a later version.
    """
    decoder = _Decoder(bytes(raw), entry_count)
    state = decoder.node(0)
    if decoder.at != len(raw):
        raise decoder.bad(f"{len(raw) - decoder.at} bytes after the end")
    return state


def walk_tree(state: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield ``(path, leaf)`` for every node of a decoded tree that is not a container or named value, in order."""
    if isinstance(state, dict):
        for key, item in state.items():
            yield from walk_tree(item, (*path, key))
    elif isinstance(state, list | tuple):
        for index, item in enumerate(state):
            yield from walk_tree(item, (*path, index))
    elif type(state) is NamedRef:
        yield from walk_tree(state.payload, (*path, state.name))
    else:
        yield path, state
