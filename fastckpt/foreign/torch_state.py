"""From what a pickle holds to a tree with numbered tensors, as the rest of fastckpt knows it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fastckpt.constants import MAX_TREE_DEPTH
from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.foreign.mesh_text import is_spec, spec_as_text
from fastckpt.foreign.model import Opaque
from fastckpt.foreign.pickle_reader import KEY, PickleReader
from fastckpt.foreign.plain_values import is_known, plain_global, plain_value, readable_name
from fastckpt.foreign.torch_objects import Function, Storage, StorageType, Tensor, UnknownStorage
from fastckpt.foreign.torch_semantics import TorchSemantics
from fastckpt.layout.entries import Entry, check_entry
from fastckpt.layout.named import ATTRIBUTES, fits, key_step
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import (
    AttributedDict,
    DeviceRef,
    DTypeRef,
    NamedRef,
    Path,
    SizeRef,
    TensorRef,
    path_text,
)
from fastckpt.layout.walk import has_objects, tensors_in
from fastckpt.text import some

LEAST_ROOM: Final = 2**23
ROOM_PER_BYTE: Final = 160
"""Bytes of memory that a tree may take, at least, and for each byte of its pickle. What a pickle refers to twice stands
twice in the tree, so a tree can be larger than its pickle; one that takes more than this is a bomb."""

# What things take, and more for those that commands go through several times. Python writes an empty container in
# 2 bytes and an object in 5, torch a tensor in 45, and one that stands there once more in 8.
_PLACE: Final = 16
_LEVEL: Final = 4
"""Of the keys on the way to a value, for each of them."""
_CHARACTER: Final = 3
"""Of text that can stand in many places, and is printed and stored in each of them."""
_CONTAINER: Final = 144
_PAIR: Final = 48
_ORDERED: Final = 288
_VALUE: Final = 256
_OBJECT: Final = 640
_TENSOR: Final = 3840
_TENSOR_AGAIN: Final = 1280

_NOT_SHOWN: Final[dict[str, object]] = {"not_shown": True}
"""What stands in the place of what is in an object, if that is too much."""

_PLAIN: Final = frozenset((bool, int, float, complex, str, bytes, DTypeRef, SizeRef, DeviceRef))


@dataclass(slots=True)
class TorchState:
    """A state read from a pickle.

    Attributes:
        tree: Containers, plain values, references and named values.
        entries: One for each `TensorRef` in the tree, in order.
        storages: The storages of the entries, by first use: ``Entry.storage`` counts in it.
        all_storages: Those and the ones only opaque values refer to, by key.
        opaque: Path text and name of everything that is not understood.
        locations: How many storages were on which device.
    """

    tree: object
    entries: list[Entry]
    storages: list[Storage]
    all_storages: dict[str, Storage]
    opaque: list[tuple[str, str]]
    locations: dict[str, int]


def read_state(data: bytes, at: int = 0, *, semantics: TorchSemantics | None = None) -> tuple[TorchState, int]:
    """Read one pickle; also returns the position after it.

    Args:
        data: Bytes that hold the pickle.
        at: Where it begins in them.
        semantics: What its globals and persistent ids mean; None is what they mean in a zip or legacy file.

    Raises:
        PickleCutError: The data ends before the pickle does.
        DamagedError: Not a valid pickle, or a tensor reaches beyond its storage.
        UnsupportedStateError: A tensor contains itself, or the state is nested too deep.
    """
    semantics = semantics or TorchSemantics(len(data))
    reader = PickleReader(data, semantics, at)
    root = reader.read()
    size = reader.at - at + semantics.described
    room = max(LEAST_ROOM, ROOM_PER_BYTE * size)
    builder = _TreeBuilder(room, reserve=room // 4)
    tree = builder.node(root, (), 0)
    # The way to a tensor in an object leads over its attributes, whatever the pickle has them in.
    for path, ref in tensors_in(tree):
        builder.paths[ref.entry] = path
    entries, storages = _number(builder.tensors, builder.paths)
    # A global that was named but is no part of the state is worth knowing too.
    hidden = [("not in the state", name) for name in semantics.unknown if name not in builder.names]
    opaque = builder.opaque + hidden
    return TorchState(tree, entries, storages, semantics.storages, opaque, semantics.locations), reader.at


@dataclass(slots=True)
class _TreeBuilder:
    room: int
    reserve: int
    least: int = 0
    tensors: list[Tensor] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    opaque: list[tuple[str, str]] = field(default_factory=list)
    exhausted: bool = False
    open: dict[int, Path] = field(default_factory=dict)
    seen: dict[int, str] = field(default_factory=dict)
    alive: list[object] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    tensors_seen: set[int] = field(default_factory=set)
    meshes: dict[str, str] = field(default_factory=dict)

    def node(self, value: Any, path: Path, depth: int) -> object:
        """The tree node for ``value``: a copy, since a tensor that stands twice becomes two entries."""
        kind = type(value)
        if kind is Tensor:
            return self.tensor(value, path, depth)
        if kind is str or kind is bytes:
            self.spend(_CHARACTER * len(value))
            return value
        if kind is int:
            self.spend(_CHARACTER * (value.bit_length() >> 3))
            return value
        if value is None or kind in _PLAIN:
            return value
        if kind in (list, tuple, dict, AttributedDict):
            return self.itself(value, path, depth) if id(value) in self.open else self.container(value, path, depth)
        if kind is Opaque:
            return self.instance(value, path, depth)
        if kind is UnknownStorage:
            return NamedRef("object", ("storage of an unknown type", {"bytes": value.key}))
        if kind not in (Function, StorageType, Storage):
            raise AssertionError(f"{path_text(path)}: the pickle reader made a {kind.__name__}")
        whole = (_all_of(value),) if kind is Storage else ()
        return self.instance(Opaque(value.global_name, whole, is_class=kind is not Storage), path, depth)

    def spend(self, nbytes: int) -> None:
        """Take memory for a part of the tree. Raises UnsupportedStateError if no honest pickle needs as much."""
        self.room -= nbytes
        if self.room < self.least:
            self.exhausted = True
            raise UnsupportedStateError(
                "the state is far larger than its pickle, which refers to the same again and again, to exhaust memory"
            )

    def tensor(self, value: Tensor, path: Path, depth: int) -> object:
        if value.lost is not None:
            states = [*([] if value.attributes is None else [value.attributes]), *value.rest]
            return self.instance(Opaque(value.lost, (replace(value, lost=None, attributes=None),), states), path, depth)
        self.spend((_TENSOR_AGAIN if id(value) in self.tensors_seen else _TENSOR) + _text_in(path))
        self.tensors_seen.add(id(value))
        self.tensors.append(value)
        self.paths.append(path)
        ref = TensorRef(len(self.tensors) - 1)
        if not value.attributes:
            return ref
        return NamedRef("tensor", (ref, self.container(value.attributes, path, depth + 2)))

    def instance(self, value: Opaque, path: Path, depth: int) -> NamedRef:
        """A value of Python's that is known, or an object: what it is made of, under its name."""
        if depth + 2 > MAX_TREE_DEPTH:
            raise too_deep(path)
        self.names.add(value.global_name)
        place = path_text(path)
        is_value = is_known(value.global_name)
        self.spend((_VALUE if is_value else _OBJECT) + len(place))
        name, before = readable_name(value), self.seen.get(id(value))
        if before is not None:
            self.note(path, name)
            return NamedRef("object", (name, {"same": before}))
        self.seen[id(value)] = place
        self.alive.append(value)
        notes, room = len(self.opaque), self.room
        fields = _NOT_SHOWN if self.exhausted and not value.is_class else self.inside(value, path, depth)
        if is_spec(name):
            fields = self.with_text(fields, f"{place}['state']['mesh']")
        if is_value:
            # What is in a value of Python's is looked through again for each such value around it.
            self.spend((room - self.room) // 4)
        known = plain_global(value.global_name) if value.is_class else plain_value(value.global_name, fields)
        if known is not None or value.is_class or value.global_name == "numpy.dtype":
            # What is made of these needs them in full.
            del self.seen[id(value)]
        if known is None or not has_objects(known):
            # Those inside of it go without saying.
            del self.opaque[notes:]
        if known is not None:
            return known
        self.note(path, name)
        return NamedRef("object", (name, fields))

    def inside(self, value: Opaque, path: Path, depth: int) -> dict[str, object]:
        """What an object is made of, as nodes. It is carried as it is, also where that is too much to be shown."""
        tensors, room, least = len(self.tensors), self.room, self.least
        # What is left is for everything else, and to name other objects.
        self.least = self.reserve
        try:
            return {key: self.node(part, (*path, key), depth + 3) for key, part in _fields(value)}
        except UnsupportedStateError:
            # A list in itself, a nesting that is too deep, or parts that are shared by too many objects.
            del self.tensors[tensors:], self.paths[tensors:]
            self.room = room
            return _NOT_SHOWN
        finally:
            self.least = least

    def with_text(self, fields: dict[str, object], mesh: str) -> dict[str, object]:
        """What says how a distributed tensor lies on its devices, and the same as text; ``mesh``: its mesh's place."""
        text = spec_as_text(fields, self.meshes, lambda ref: self.tensors[ref.entry].shape)
        self.meshes[mesh] = str(text.get("mesh"))
        return fields | {"text": text} if text else fields

    def note(self, path: Path, what: str) -> None:
        """List something that is not understood."""
        self.opaque.append((path_text(path), what))

    def itself(self, value: Any, path: Path, depth: int) -> NamedRef:
        """A list or dict around itself: an object that is the one at its first place."""
        if depth + 2 > MAX_TREE_DEPTH:
            raise too_deep(path)
        place = path_text(self.open[id(value)])
        self.spend(_OBJECT + len(place))
        kind = "OrderedDict" if type(value) is AttributedDict else type(value).__name__
        name = f"{kind} that contains itself"
        self.note(path, name)
        return NamedRef("object", (name, {"same": place}))

    def container(self, value: Any, path: Path, depth: int) -> Any:
        if id(value) in self.open:
            raise UnsupportedStateError(f"{path_text(path)[:200]}: the state contains itself")
        if depth >= MAX_TREE_DEPTH:
            raise too_deep(path)
        self.spend(_CONTAINER + len(value) * (_PLACE + _LEVEL * depth))
        self.open[id(value)] = path
        try:
            if isinstance(value, dict):
                return self.dict_(value, path, depth)
            items = [self.node(item, (*path, index), depth + 1) for index, item in enumerate(value)]
            return items if type(value) is list else tuple(items)
        finally:
            del self.open[id(value)]

    def dict_(self, value: dict[Any, Any], path: Path, depth: int) -> object:
        ordered = type(value) is AttributedDict
        self.spend(_ORDERED * ordered + len(value) * _PAIR * (1 + ordered) + _text_in(value))
        attributes = vars(value).get("attributes") if ordered else None
        if any(type(key) is Opaque for key in value):
            return self.pairs(value, attributes, path, depth)
        items: dict[Any, Any] = {} if type(value) is dict else OrderedDict()
        for key, item in value.items():
            items[key] = self.node(item, (*path, key), depth + 1)
        if attributes:
            result = AttributedDict(items)
            result.attributes = self.container(attributes, (*path, ATTRIBUTES), depth + 1)
            return result
        return items

    def pairs(self, value: dict[Any, Any], attributes: dict[str, Any] | None, path: Path, depth: int) -> object:
        """A dict that has other keys than text and ints."""
        pairs = []
        for index, (key, item) in enumerate(value.items()):
            plain = key.args[0] if type(key) is Opaque and key.global_name == KEY else key
            made = self.node(plain, (*path, index), depth + 4)
            pairs.append((made, self.node(item, (*path, key_step(made, index)), depth + 4)))
        if type(value) is dict:
            name, payload = "dict", pairs
        else:
            under = self.container(attributes or {}, (*path, ATTRIBUTES), depth + 2)
            name, payload = "ordered_dict", (pairs, under)  # type: ignore[assignment]
        if fits(name, payload):
            return NamedRef(name, payload)
        self.note(path, "dict with tensors as keys")
        return NamedRef("object", ("dict", {"pairs": pairs}))


def _text_in(keys: Iterable[object]) -> int:
    return _CHARACTER * sum([len(key) for key in keys if type(key) is str])


def too_deep(path: Path) -> UnsupportedStateError:
    """The error for what is nested deeper than a tree can be."""
    return UnsupportedStateError(f"{path_text(path)[:200]}...: nested deeper than {MAX_TREE_DEPTH} levels")


def _fields(value: Opaque) -> Iterator[tuple[str, object]]:
    """What an object is made of; SPEC.md, section 9.1, says under which keys."""
    if value.is_class:
        yield "class", True
    if value.args:
        yield "args", tuple(value.args)
    if value.states:
        yield "state", value.states[0] if len(value.states) == 1 else list(value.states)
    if value.items:
        yield "items", list(value.items)
    if value.pairs:
        yield "pairs", list(zip(value.pairs[::2], value.pairs[1::2], strict=False))


def _all_of(storage: Storage) -> Tensor:
    """A storage that stands in the state by itself: all of its elements."""
    dtype, itemsize = (storage.type.dtype, storage.type.itemsize) if storage.type.dtype is not None else ("uint8", 1)
    return Tensor(storage, dtype, 0, (storage.nbytes // itemsize,), (1,))


def _number(tensors: list[Tensor], paths: list[Path]) -> tuple[list[Entry], list[Storage]]:
    numbers: dict[str, int] = {}
    storages: list[Storage] = []
    sizes: list[int] = []
    entries = []
    for tensor, name in zip(tensors, flat_names(paths), strict=True):
        storage = tensor.storage
        number = numbers.setdefault(storage.key, len(storages))
        if number == len(storages):
            storages.append(storage)
            sizes.append(storage.nbytes)
        entry = Entry(name, tensor.dtype, tensor.shape, tensor.stride, number, tensor.offset, tensor.flags)
        check_entry(entry, sizes)
        entries.append(entry)
    return entries, storages


def missing_storages(state: TorchState, keys: list[str], *, total: int, what: str) -> DamagedError:
    """The error for storages that are not there (``what``: "missing", "of the wrong size"), naming their tensors."""
    lost = set(keys)
    names = [entry.name for entry in state.entries if state.storages[entry.storage].key in lost]
    shown = some(names, 5) or "none that fastckpt understands"
    return DamagedError(
        f"{len(keys)} of {total} storages are {what}; tensors in them: {shown}", tensor=names[0] if names else None
    )
