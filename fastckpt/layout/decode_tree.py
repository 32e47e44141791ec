"""A tree from its bytes. Each node is a tag byte followed by what the tag needs; lengths are unsigned LEB128."""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any, Final

from fastckpt.constants import MAX_INT_KEY_SIZE, MAX_TREE_DEPTH
from fastckpt.errors import DamagedError, UnsupportedVersionError
from fastckpt.layout.dtypes import BY_CODE
from fastckpt.layout.key_watch import KeyWatch
from fastckpt.layout.named import SHAPES, NamedRef, SizeRef, TensorRef, fits, is_registered
from fastckpt.layout.tree_nodes import (
    TAG_BYTES,
    TAG_COMPLEX,
    TAG_DEVICE,
    TAG_DICT,
    TAG_DTYPE,
    TAG_FALSE,
    TAG_FLOAT,
    TAG_INT,
    TAG_LIST,
    TAG_NAMED_VALUE,
    TAG_NONE,
    TAG_ORDERED_DICT,
    TAG_SIZE,
    TAG_STR,
    TAG_TENSOR,
    TAG_TRUE,
    TAG_TUPLE,
    AttributedDict,
    DeviceRef,
    DTypeRef,
)

_STR: Final = bytes((TAG_STR,))
_FLOAT = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")

_SHIFTS: Final = range(0, 70, 7)
"""Of the seven bits that each byte of a length has."""


class _Decoder:
    def __init__(self, raw: bytes, entry_count: int) -> None:
        self.raw = raw
        self.at = 0
        self.entry_count = entry_count
        self.keys = KeyWatch()
        self.tensors = 0

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
        # Without a call for each byte: half the time of decoding a tree with many tensors.
        raw, at, end = self.raw, self.at, len(self.raw)
        value = 0
        for shift in _SHIFTS:
            if at == end:
                self.at = at
                raise self.bad("1 bytes wanted, 0 left")
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self.at = at
                if value >> 64:
                    break
                return value
        self.at = at
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
            self.tensors += 1
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
        before = self.tensors
        payload = self.node(depth + 1)
        if not is_registered(name) and name not in SHAPES:
            raise self.unknown(f"named value {name!r:.80}")
        if not fits(name, payload, no_tensors=self.tensors == before):
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
                if not self.keys.admits(key, into):
                    raise self.bad("int keys that are chosen to make their dict slow")
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
