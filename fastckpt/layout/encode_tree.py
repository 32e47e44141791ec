"""A tree as bytes. Each node is a tag byte followed by what the tag needs; lengths are unsigned LEB128."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from fastckpt.constants import MAX_INT_KEY_SIZE, MAX_TREE_DEPTH
from fastckpt.errors import UnsupportedStateError
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.key_watch import makes_slow
from fastckpt.layout.named import (
    ANY,
    ATTRIBUTES,
    KEY,
    SHAPES,
    NamedRef,
    SizeRef,
    TensorRef,
    fits,
    key_step,
    object_parts,
)
from fastckpt.layout.tree_nodes import (
    PLAIN_TYPES,
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
    Path,
    path_text,
)

_FLOAT = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")

_STORABLE: Final = frozenset((*PLAIN_TYPES, AttributedDict, TensorRef, DTypeRef, SizeRef, DeviceRef, NamedRef))
_DIRECT_KEYS: Final = frozenset((str, int))
"""Keys that stand in a dict's own node; with others it is a named value."""


class _WayIn:
    """The step from an object to what the file keeps of it."""


class _Encoder:
    def __init__(self, resolve: Callable[[Any, Path], object]) -> None:
        self.out = bytearray()
        self.resolve = resolve
        self.open: set[int] = set()
        self.in_key = False
        # What is in objects goes by other paths than the keys on the way to it.
        self.paths: dict[Path, Path] = {}
        self.refusals: list[UnsupportedStateError] = []

    def refuse(self, path: Path, what: str, next_step: str | None = None) -> None:
        """Note what cannot be stored; the rest is looked at all the same, so that one error names everything."""
        self.note(UnsupportedStateError(f"{_place(path)}: {what}", next_step=next_step))

    def note(self, refusal: UnsupportedStateError) -> None:
        """Note a refusal; None stands in the place of what is refused."""
        self.refusals.append(refusal)
        self.out.append(TAG_NONE)

    def size(self, value: int) -> None:
        while value > 0x7F:
            self.out.append(value & 0x7F | 0x80)
            value >>= 7
        self.out.append(value)

    def text(self, tag: int, value: str, path: Path) -> None:
        try:
            raw = value.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"the text {value!r} is not valid Unicode ({error.reason})"
            self.refusals.append(
                UnsupportedStateError(f"{_place(path)}: {what}", next_step="replace the lone surrogate first")
            )
            raw = value.encode("utf-8", "backslashreplace")
        self.out.append(tag)
        self.size(len(raw))
        self.out += raw

    def node(self, value: Any, path: Path, depth: int) -> None:
        out = self.out
        kind = type(value)
        path = self.paths.get(path, path) if self.paths else path
        if kind not in _STORABLE:
            self.unknown(value, path, depth)
        elif kind is TensorRef:
            self.tensor(value, path)
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
            if self.enter(value, path, depth):
                self.container(value, kind, path, depth)
                self.open.discard(id(value))
        elif kind is DTypeRef:
            out += bytes((TAG_DTYPE, BY_NAME[value.name].code))
        elif kind is SizeRef:
            if any(extent < 0 for extent in value.shape):
                self.refuse(path, f"cannot store a size with a negative extent: {value.shape}")
                return
            out.append(TAG_SIZE)
            self.size(len(value.shape))
            for extent in value.shape:
                self.size(extent)
        elif kind is NamedRef:
            if self.enter(value, path, depth):
                self.named(value, path, depth)
                self.open.discard(id(value))
        else:
            self.text(TAG_DEVICE, value.name, path)

    def enter(self, value: object, path: Path, depth: int) -> bool:
        """Whether a value can be gone into: it does not contain itself, and is not too deep."""
        if id(value) in self.open:
            self.refuse(path, "the state contains itself")
            return False
        if depth >= MAX_TREE_DEPTH:
            self.note(UnsupportedStateError(f"{_place(path)[:200]}...: nested deeper than {MAX_TREE_DEPTH} levels"))
            return False
        self.open.add(id(value))
        return True

    def unknown(self, value: object, path: Path, depth: int) -> None:
        """What is no node: a reference or named value stands for it."""
        if id(value) in self.open:
            self.refuse(path, "the state contains itself")
            return
        try:
            resolved = self.resolve(value, path)
        except UnsupportedStateError as error:
            self.note(error)
            return
        kind = type(resolved)
        if isinstance(resolved, TensorRef):
            self.tensor(resolved, path)
        elif kind in _STORABLE:
            self.open.add(id(value))
            self.node(resolved, path, depth)
            self.open.discard(id(value))
        else:
            self.refuse(path, f"cannot store {kind.__module__}.{kind.__qualname__}")

    def tensor(self, value: TensorRef, path: Path) -> None:
        if self.in_key:
            self.refuse(path, "cannot store a tensor or array in a set or as a dict key", "use a list or a name")
            return
        self.out.append(TAG_TENSOR)
        self.size(value.entry)

    def named(self, value: NamedRef, path: Path, depth: int) -> None:
        if not fits(value.name, value.payload):
            self.refuse(path, f"this is no {value.name!r}: {value.payload!r:.80}")
            return
        if value.name == "object":
            # As in `named.parts`. The way into each object is its own: steps of a program can look like it, and an
            # object that is made of one other has the same path as that.
            way_in = (*path, _WayIn())
            self.paths |= {(*way_in, *way): (*path, *steps) for way, steps, _ in object_parts(value.payload[1])}
            path = way_in
        self.text(TAG_NAMED_VALUE, value.name, path)
        self.payload(value.payload, SHAPES.get(value.name, ANY), path, depth + 1)

    def payload(self, value: Any, shape: object, path: Path, depth: int) -> None:
        """A payload of this shape; the steps to what is in it are those of `named.parts`."""
        if isinstance(shape, tuple):
            self.out.append(TAG_TUPLE)
            self.size(len(value))
            for item, part in zip(value, shape, strict=True):
                self.payload(item, part, path, depth + 1)
        elif isinstance(shape, list):
            keys = value if shape == [KEY] else [item[0] for item in value] if isinstance(shape[0], tuple) else []
            if _make_slow(keys):
                self.refuse(path, "cannot store keys or elements that make a dict or set slow")
                return
            self.out.append(TAG_LIST)
            self.size(len(value))
            if shape == [KEY]:
                self.out += b"".join(sorted([self.key(item, path, depth + 1) for item in value]))
                return
            for index, item in enumerate(value):
                if isinstance(shape[0], tuple):
                    self.out += bytes((TAG_TUPLE, 2)) + self.key(item[0], path, depth + 2)
                    self.node(item[1], (*path, key_step(item[0], index)), depth + 2)
                else:
                    self.node(item, (*path, index), depth + 1)
        elif shape is KEY:
            self.out += self.key(value, path, depth)
        else:
            self.node(value, path, depth)

    def key(self, value: object, path: Path, depth: int) -> bytes:
        """The bytes of a node that is a key or in a set, where no tensor can be."""
        whole, before = self.out, self.in_key
        self.out, self.in_key = bytearray(), True
        self.node(value, path, depth)
        raw = bytes(self.out)
        self.out, self.in_key = whole, before
        return raw

    def container(self, value: Any, kind: type, path: Path, depth: int) -> None:
        out = self.out
        if kind is list or kind is tuple:
            out.append(TAG_LIST if kind is list else TAG_TUPLE)
            self.size(len(value))
            for index, item in enumerate(value):
                self.node(item, (*path, index), depth + 1)
            return
        attributes = None if kind is dict else value.attributes if kind is AttributedDict else vars(value)
        key_kinds = set(map(type, value))
        if not key_kinds <= _DIRECT_KEYS:
            pairs = list(value.items())
            self.named(
                NamedRef("dict", pairs) if kind is dict else NamedRef("ordered_dict", (pairs, dict(attributes or {}))),
                path,
                depth,
            )
            return
        if int in key_kinds and makes_slow(value):
            self.refuse(path, "cannot store int keys that make their dict slow")
            return
        out.append(TAG_DICT if kind is dict else TAG_ORDERED_DICT)
        self.size(len(value))
        for key, item in value.items():
            if type(key) is str:
                self.text(TAG_STR, key, path)
            elif key.bit_length() >= 8 * MAX_INT_KEY_SIZE:
                self.text(TAG_STR, "", path)
                what = f"cannot store an int key of more than {MAX_INT_KEY_SIZE} bytes"
                self.refusals.append(UnsupportedStateError(f"{_place(path)}: {what}"))
            else:
                self.node(key, path, depth + 1)
            self.node(item, (*path, key), depth + 1)
        if kind is not dict:
            self.node(dict(attributes) if attributes else None, (*path, ATTRIBUTES), depth + 1)


def _place(path: Path) -> str:
    return path_text(tuple(step for step in path if type(step) is not _WayIn))


def _make_slow(keys: list[Any]) -> bool:
    try:
        return makes_slow(keys)
    except TypeError:  # Nodes that stand for values: whoever reads the file makes these, and looks then.
        return False


def _refuse(value: object, path: Path) -> object:
    """Raise UnsupportedStateError: a tree that was read from a file holds nothing that has to be resolved."""
    raise UnsupportedStateError(f"{path_text(path)}: cannot store {type(value).__name__}")


def encode_tree(
    state: object,
    resolve: Callable[[Any, Path], object] = _refuse,
    *,
    refusals: list[UnsupportedStateError] | None = None,
) -> bytes:
    """Encode ``state``.

    Args:
        state: Any nesting of the storable types.
        resolve: Called with every object this module does not know (a tensor,
            a ``torch.dtype``, ...) and its path; returns the reference or named value to store,
            whose payload may hold objects of that kind again; or raises, as it does unless given.
        refusals: Where to note what cannot be stored, instead of raising; None stands in its place then.

    Raises:
        UnsupportedStateError: Something cannot be stored; lists all of it, by path, with what to do about each.
    """
    encoder = _Encoder(resolve)
    encoder.node(state, (), 0)
    if refusals is not None:
        refusals += encoder.refusals
    elif encoder.refusals:
        raise all_refusals(encoder.refusals)
    return bytes(encoder.out)


def all_refusals(refusals: list[UnsupportedStateError]) -> UnsupportedStateError:
    """One error for all that cannot be stored."""
    if len(refusals) == 1:
        return refusals[0]
    lines = [f"  {refusal}" for refusal in refusals]
    return UnsupportedStateError("\n".join((f"{len(refusals)} things cannot be stored:", *lines)))
