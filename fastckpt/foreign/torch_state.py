"""From what a pickle holds to a tree with numbered tensors, as the rest of fastckpt knows it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from fastckpt.constants import MAX_TREE_DEPTH
from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.foreign.model import Opaque
from fastckpt.foreign.pickle_reader import PickleReader
from fastckpt.foreign.torch_objects import Function, Storage, StorageType, Tensor
from fastckpt.foreign.torch_semantics import TorchSemantics
from fastckpt.layout.entries import Entry, check_entry
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import AttributedDict, DeviceRef, DTypeRef, Path, SizeRef, TensorRef, path_text

MIN_NODE_LIMIT: Final = 200_000
NODES_PER_BYTE: Final = 4
"""Objects that a pickle refers to twice stand twice in the tree, so a tree can be larger than
its pickle; one that is larger than this many nodes per byte is a bomb."""

MIN_TEXT_LIMIT: Final = 2**26
TEXT_PER_BYTE: Final = 8
"""The same for the characters of all names: a long key above many tensors is in each of their names."""

_PLAIN: Final = frozenset((bool, int, float, complex, str, bytes, DTypeRef, SizeRef, DeviceRef))


@dataclass(slots=True)
class TorchState:
    """A state read from a pickle.

    Attributes:
        tree: Containers, plain values, references and `Opaque` leaves.
        entries: One for each `TensorRef` in the tree, in order.
        storages: The storages of the entries, by first use: ``Entry.storage`` counts in it.
        all_storages: Those and the ones only opaque values refer to, by key.
        opaque: Path text and name of everything that is not understood.
        objects: Path text and what stands there, for what of it has a place.
        locations: How many storages were on which device.
    """

    tree: object
    entries: list[Entry]
    storages: list[Storage]
    all_storages: dict[str, Storage]
    opaque: list[tuple[str, str]]
    objects: list[tuple[str, object]]
    locations: dict[str, int]

    def users(self, key: str) -> list[str]:
        """Flat names of the tensors that lie in the storage with this key."""
        return [entry.name for entry in self.entries if self.storages[entry.storage].key == key]


def read_state(data: bytes, at: int = 0) -> tuple[TorchState, int]:
    """Read one pickle; also returns the position after it.

    Args:
        data: Bytes that hold the pickle.
        at: Where it begins in them.

    Raises:
        PickleCutError: The data ends before the pickle does.
        DamagedError: Not a valid pickle, or a tensor reaches beyond its storage.
        UnsupportedStateError: The state contains itself, or is nested too deep.
    """
    semantics = TorchSemantics(len(data))
    reader = PickleReader(data, semantics, at)
    root = reader.read()
    size = reader.at - at
    builder = _TreeBuilder(
        node_limit=max(MIN_NODE_LIMIT, NODES_PER_BYTE * size), text_limit=max(MIN_TEXT_LIMIT, TEXT_PER_BYTE * size)
    )
    tree = builder.node(root, ())
    entries, storages = _number(builder.tensors, builder.paths)
    # A global that was named but is no part of the state, e.g. inside another opaque value, is worth knowing too.
    listed = {name for _, name in builder.opaque}
    hidden = [("not in the state", name) for name in semantics.unknown if name not in listed]
    opaque = builder.opaque + hidden
    return TorchState(
        tree, entries, storages, semantics.storages, opaque, builder.objects, semantics.locations
    ), reader.at


@dataclass(slots=True)
class _TreeBuilder:
    node_limit: int
    text_limit: int
    tensors: list[Tensor] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    opaque: list[tuple[str, str]] = field(default_factory=list)
    objects: list[tuple[str, object]] = field(default_factory=list)
    nodes: int = 0
    open: set[int] = field(default_factory=set)

    def node(self, value: Any, path: Path) -> object:
        """The tree node for ``value``: a copy, since a tensor that stands twice becomes two entries."""
        kind = type(value)
        self.nodes += 1
        if kind is Tensor:
            self.count_text(path)
            self.tensors.append(value)
            self.paths.append(path)
            if value.lost is not None:
                self.note(path, value.lost, value.rest)
            return TensorRef(len(self.tensors) - 1)
        if value is None or kind in _PLAIN:
            return value
        if kind in (list, tuple, dict, AttributedDict):
            return self.container(value, path)
        if kind in (Function, StorageType, Storage):
            value = Opaque(value.global_name, [value])
        elif kind is not Opaque:
            raise AssertionError(f"{path_text(path)}: the pickle reader made a {kind.__name__}")
        self.note(path, value.global_name, value)
        return value

    def note(self, path: Path, what: str, value: object) -> None:
        """List something that is not understood."""
        self.count_text(path)
        self.opaque.append((path_text(path), what))
        self.objects.append((path_text(path), value))

    def count_text(self, path: Path) -> None:
        """Take the length of a name off what names may be long in all."""
        self.text_limit -= sum([len(key) for key in path if type(key) is str])
        if self.text_limit < 0:
            raise UnsupportedStateError("the names of the tensors are far longer than their pickle, to exhaust memory")

    def container(self, value: Any, path: Path) -> object:
        if id(value) in self.open:
            raise UnsupportedStateError(f"{path_text(path)[:200]}: the state contains itself")
        if len(path) >= MAX_TREE_DEPTH:
            raise UnsupportedStateError(f"{path_text(path)[:200]}...: nested deeper than {MAX_TREE_DEPTH} levels")
        if self.nodes + len(value) > self.node_limit:
            raise UnsupportedStateError(
                f"the state has more than {self.node_limit} values although its pickle is small, to exhaust memory"
            )
        self.open.add(id(value))
        result: object
        if isinstance(value, dict):
            result = self.dict_(value, path)
        else:
            items = [self.node(item, (*path, index)) for index, item in enumerate(value)]
            result = items if type(value) is list else tuple(items)
        self.open.discard(id(value))
        return result

    def dict_(self, value: dict[Any, Any], path: Path) -> object:
        items: dict[Any, Any] = {} if type(value) is dict else OrderedDict()
        for key, item in value.items():
            if type(key) is Opaque:
                self.note(path, f"dict key of type {key.global_name}", key)
            items[key] = self.node(item, (*path, key))
        attributes = vars(value).get("attributes") if type(value) is AttributedDict else None
        if attributes:
            result = AttributedDict(items)
            result.attributes = self.container(attributes, (*path, "__dict__"))  # type: ignore[assignment]
            return result
        return items


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
        # An empty view may begin anywhere, also beyond the storage: torch.zeros(3, 4)[3:, 2:].
        if 0 not in entry.shape:
            check_entry(entry, sizes)
        entries.append(entry)
    return entries, storages


def missing_storages(state: TorchState, keys: list[str], *, total: int, what: str) -> DamagedError:
    """The error for storages that are not there (``what``: "missing", "of the wrong size"), naming their tensors."""
    names = [name for key in keys[:8] for name in state.users(key)]
    shown = ", ".join(names[:5]) if names else "none that fastckpt understands"
    if len(names) > 5 or len(keys) > 8:
        shown += ", ..."
    return DamagedError(
        f"{len(keys)} of {total} storages are {what}; tensors in them: {shown}", tensor=names[0] if names else None
    )
