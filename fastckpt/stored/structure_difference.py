"""How two checkpoints differ in everything but the bytes of their tensors: names, types, plain values, nesting."""

from __future__ import annotations

import fnmatch
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from fastckpt.constants import (
    ENTRY_FLAG_CONJ,
    ENTRY_FLAG_NEG,
    ENTRY_FLAG_PARAMETER,
    ENTRY_FLAG_REQUIRES_GRAD,
)
from fastckpt.layout.entries import Entry
from fastckpt.layout.named import ATTRIBUTES
from fastckpt.layout.prefixes import Named, Renaming, find_renaming, with_names, without_prefix
from fastckpt.layout.tree import NamedRef
from fastckpt.stored.flat_tree import FlatTree
from fastckpt.stored.opened import Opened
from fastckpt.text import count_text

T = TypeVar("T")
Change = tuple[Any, Any]
"""What something is in A and what it is in B."""

_FLAGS = {
    "requires_grad": ENTRY_FLAG_REQUIRES_GRAD,
    "parameter": ENTRY_FLAG_PARAMETER,
    "conj": ENTRY_FLAG_CONJ,
    "neg": ENTRY_FLAG_NEG,
}

_TRAINED = ENTRY_FLAG_PARAMETER | ENTRY_FLAG_REQUIRES_GRAD
WRITTEN_BY = ("format", "pt")
"""What a ``.safetensors`` says of the library that wrote it."""


@dataclass(slots=True)
class NamedDifference(Generic[T]):
    """How two mappings by name differ.

    Attributes:
        only_a, only_b: What just one of them has.
        changed: What both have, in two versions.
    """

    only_a: dict[str, T] = field(default_factory=dict)
    only_b: dict[str, T] = field(default_factory=dict)
    changed: dict[str, Change] = field(default_factory=dict)

    @classmethod
    def of(cls, a: dict[str, T], b: dict[str, T], *, same: Callable[[T, T], bool]) -> NamedDifference[T]:
        """The difference; ``same`` says whether two values are equal."""
        return cls(
            {name: value for name, value in a.items() if name not in b},
            {name: value for name, value in b.items() if name not in a},
            {name: (value, b[name]) for name, value in a.items() if name in b and not same(value, b[name])},
        )

    def __bool__(self) -> bool:
        return bool(self.only_a or self.only_b or self.changed)

    def __len__(self) -> int:
        return len(self.only_a) + len(self.only_b) + len(self.changed)


@dataclass(slots=True)
class StructureDifference:
    """How two checkpoints differ before a byte of a tensor is read.

    Attributes:
        pairs: The tensors that both have, by their names in A, in the order of A.
        renamed: The prefixes without which both have the same names, if the names as they are differ.
        only_a, only_b: The tensors that just one of them has.
        tensors: What changed about a common tensor: ``dtype``, ``shape``, ``layout``, ``requires_grad``, ...; ``place``
            in the nesting; ``offset``, in bytes, among those that lie in its storage.
        values: Plain values, by flat name.
        metadata: The same in the user's metadata.
        containers: Types of containers that are at the same place.
        shared_a, shared_b: Groups of common tensors that lie in one storage in just one of the checkpoints.
        uncompared: What only one of the formats can hold, and its file does hold.
        notes: What else there is to say.
    """

    pairs: dict[str, tuple[Entry, Entry]] = field(default_factory=dict)
    renamed: Renaming | None = None
    only_a: list[Entry] = field(default_factory=list)
    only_b: list[Entry] = field(default_factory=list)
    tensors: dict[str, dict[str, Change]] = field(default_factory=dict)
    values: NamedDifference[Any] = field(default_factory=NamedDifference)
    metadata: NamedDifference[Any] = field(default_factory=NamedDifference)
    containers: dict[str, Change] = field(default_factory=dict)
    shared_a: list[list[str]] = field(default_factory=list)
    shared_b: list[list[str]] = field(default_factory=list)
    uncompared: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool | None:
        """Whether there is no difference (notes do not count); None if there is none, but not all was compared."""
        groups = (self.renamed, self.only_a, self.only_b, self.tensors, self.values, self.metadata, self.containers)
        if any((*groups, self.shared_a, self.shared_b)):
            return False
        return None if self.uncompared else True


class _Side:
    """What is compared of one checkpoint, under the names that the other one has as well.

    Attributes:
        entries: The tensors by these names.
        tree: The nesting with these keys.
        is_bare: Whether it can hold nothing but tensors.
    """

    def __init__(self, file: Opened, prefix: str) -> None:
        self.is_bare = file.is_bare
        self._file = file
        self._prefix = prefix
        named = with_names(file.entries, self.tree) if prefix else file.entries
        self.entries = {entry.name: own for entry, own in zip(named, file.entries, strict=True)}

    @cached_property
    def tree(self) -> Any:
        return without_prefix(self._file.tree, self._prefix) if self._prefix else self._file.tree


def compare_structure(a: Opened, b: Opened, *, keys: str | None = None) -> StructureDifference:
    """Compare everything but the bytes of tensors.

    Args:
        a: One checkpoint.
        b: The other one.
        keys: A glob: only tensors whose name in one of them matches are compared, and nothing else.
    """
    renamed = find_renaming(*(Named(file.entries, lambda file=file: file.tree) for file in (a, b)))  # type: ignore[misc]
    ours, theirs = (_Side(file, prefix) for file, prefix in zip((a, b), renamed or ("", ""), strict=True))
    result = StructureDifference(
        pairs={
            own.name: (own, theirs.entries[name])
            for name, own in ours.entries.items()
            if name in theirs.entries and (_is_chosen(own, keys) or _is_chosen(theirs.entries[name], keys))
        },
        renamed=renamed,
        only_a=[own for name, own in ours.entries.items() if name not in theirs.entries and _is_chosen(own, keys)],
        only_b=[own for name, own in theirs.entries.items() if name not in ours.entries and _is_chosen(own, keys)],
    )
    # What a .safetensors cannot hold is no difference between two tensors.
    bare = ours.is_bare or theirs.is_bare
    for name, (own, other) in result.pairs.items():
        changes = _entry_changes(own, other, bare=bare)
        if changes:
            result.tensors[name] = changes
    if keys is not None:
        return result
    result.metadata = _metadata(a, b)
    _compare_nesting(result, ours, theirs)
    return result


def _compare_nesting(result: StructureDifference, ours: _Side, theirs: _Side) -> None:
    """Note how values, containers and shared storages differ."""
    flat_a, flat_b = FlatTree.of(ours.tree), FlatTree.of(theirs.tree)
    if ours.is_bare != theirs.is_bare:
        full, bare = ((theirs, flat_b), flat_a) if ours.is_bare else ((ours, flat_a), flat_b)
        result.uncompared = list(_not_in_safetensors(*full, bare))
        values = [_without_attributes(flat.values) for flat in (flat_a, flat_b)]
        result.values = NamedDifference.of(*values, same=same_value)
        return
    result.containers = _container_changes(flat_a, flat_b)
    for name, changes in _place_changes(ours, flat_a, theirs, flat_b):
        result.tensors.setdefault(ours.entries[name].name, {}).update(changes)
    groups_a, groups_b = (_sharing(side, ours.entries.keys() & theirs.entries.keys()) for side in (ours, theirs))
    set_a, set_b = set(groups_a), set(groups_b)
    result.shared_a = [sorted(names) for names in groups_a if names not in set_b]
    result.shared_b = [sorted(names) for names in groups_b if names not in set_a]
    result.values = _value_changes(flat_a, flat_b)
    result.notes += _other_order("tensors", list(ours.entries), list(theirs.entries))
    result.notes += _other_order("plain values", list(flat_a.values), list(flat_b.values))


def _other_order(what: str, a: list[str], b: list[str]) -> list[str]:
    """What there is to say of the order of what both have."""
    if a == b:
        return []
    both = set(a) & set(b)
    if [name for name in a if name in both] == [name for name in b if name in both]:
        return []
    return [f"the {what} stand in another order, which does not count as a difference"]


def _is_chosen(entry: Entry, keys: str | None) -> bool:
    return keys is None or fnmatch.fnmatchcase(entry.name, keys)


def _metadata(a: Opened, b: Opened) -> NamedDifference[Any]:
    """The user's metadata of both. What a .safetensors says of the library that wrote it is a matter of the format."""
    flat_a, flat_b = (FlatTree.of(file.metadata) for file in (a, b))
    if a.format == b.format:
        found = _value_changes(flat_a, flat_b)
        found.changed |= _container_changes(flat_a, flat_b)
        return found
    values = [
        {name: value for name, value in flat.values.items() if (name, value) != WRITTEN_BY} for flat in (flat_a, flat_b)
    ]
    return NamedDifference.of(*values, same=same_value)


def _container_changes(a: FlatTree, b: FlatTree) -> dict[str, Change]:
    """Places at which both have a container, of another type."""
    both = a.containers.keys() & b.containers.keys()
    return {
        at: (a.containers[at], b.containers[at])
        for at in a.containers
        if at in both and a.containers[at] != b.containers[at]
    }


def _value_changes(a: FlatTree, b: FlatTree) -> NamedDifference[Any]:
    """How plain values differ; those that have the same flat name at different places are two values."""
    moved = {name for name, place in a.places.items() if b.places.get(name, place) != place}
    by_name = [flat.values for flat in (a, b)]
    if moved:
        by_name = [
            {flat.places[name] if name in moved else name: value for name, value in flat.values.items()}
            for flat in (a, b)
        ]
    return NamedDifference.of(*by_name, same=same_value)


def _place_changes(a: _Side, flat_a: FlatTree, b: _Side, flat_b: FlatTree) -> Iterator[tuple[str, dict[str, Change]]]:
    """Name and changes of each common tensor that stands elsewhere in the nesting, or in a storage that it shares."""
    places = [
        {name: flat.tensors.get(number, "") for number, name in enumerate(side.entries)}
        for side, flat in ((a, flat_a), (b, flat_b))
    ]
    numbers: dict[frozenset[str], int] = {}
    offsets = [_offsets(side, a.entries.keys() & b.entries.keys(), numbers) for side in (a, b)]
    for name in a.entries:
        if name in b.entries:
            changes: dict[str, Change] = {}
            if places[0][name] != places[1][name]:
                changes["place"] = (places[0][name], places[1][name])
            one, other = (found.get(name) for found in offsets)
            if one is not None and other is not None and one[0] == other[0] and one[1] != other[1]:
                changes["offset"] = (one[1], other[1])
            if changes:
                yield name, changes


def _without_attributes(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not _is_attribute(name)}


def _is_attribute(name: str) -> bool:
    return ATTRIBUTES in name.split(".")


def _not_in_safetensors(side: _Side, flat: FlatTree, bare: FlatTree) -> Iterator[str]:
    """What a file holds that no .safetensors can, as ``bare``: it is not known whether the tensors alone would do."""
    entries = side.entries.values()
    users = Counter(entry.storage for entry in entries if entry.nbytes)
    counts = [
        (sum(map(_is_attribute, flat.values)), "attribute", "of containers"),
        (sum(bare.containers.get(place) != kind for place, kind in flat.containers.items()), "container", ""),
        (sum(not entry.is_contiguous for entry in entries), "tensor", "with strides of its own"),
        (sum(count for count in users.values() if count > 1), "tensor", "that share a storage"),
        (sum(bool(entry.flags & _TRAINED) for entry in entries), "parameter", ""),
    ]
    for count, noun, which in counts:
        if count:
            yield f"{count_text(count, noun)} {which}".strip()


def _entry_changes(a: Entry, b: Entry, *, bare: bool) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    if a.dtype != b.dtype:
        changes["dtype"] = (a.dtype, b.dtype)
    if a.shape != b.shape:
        changes["shape"] = (list(a.shape), list(b.shape))
    if bare:
        return changes
    if a.shape == b.shape and _steps(a) != _steps(b):
        changes["layout"] = (_layout(a), _layout(b))
    for what, flag in _FLAGS.items():
        if (a.flags ^ b.flags) & flag:
            changes[what] = (bool(a.flags & flag), bool(b.flags & flag))
    return changes


def _steps(entry: Entry) -> list[int]:
    """The strides that matter: of an extent of 1, or in an empty tensor, none does."""
    return [step for n, step in zip(entry.shape, entry.stride, strict=True) if n > 1] if entry.numel else []


def _layout(entry: Entry) -> str:
    return "contiguous" if entry.is_contiguous else f"stride {entry.stride}"


def _sharing(side: _Side, common: Set[str]) -> list[frozenset[str]]:
    """The common tensors that lie in the same storage, for each storage with several."""
    groups: dict[int, set[str]] = {}
    for name, entry in side.entries.items():
        if name in common and entry.nbytes:
            groups.setdefault(entry.storage, set()).add(name)
    return [frozenset(names) for names in groups.values() if len(names) > 1]


def _offsets(side: _Side, common: Set[str], numbers: dict[frozenset[str], int]) -> dict[str, tuple[int, int]]:
    """With which others each common tensor shares a storage, and how many bytes behind the first of them it begins.

    The others are told by a number in ``numbers``: to compare sets for each of their members would take too long.
    """
    found: dict[str, tuple[int, int]] = {}
    for names in _sharing(side, common):
        number = numbers.setdefault(names, len(numbers))
        first = min(side.entries[name].span[0] for name in names)
        found |= {name: (number, side.entries[name].span[0] - first) for name in names}
    return found


def same_value(a: Any, b: Any) -> bool:
    """Whether two plain values are the same: type and, of floats, every bit."""
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return struct.pack("<d", a) == struct.pack("<d", b)
    if type(a) is complex:
        return same_value(a.real, b.real) and same_value(a.imag, b.imag)
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    if type(a) is NamedRef:
        return bool(a.name == b.name) and same_value(a.payload, b.payload)
    if isinstance(a, dict):
        return same_value(list(a.items()), list(b.items()))
    return bool(a == b)
