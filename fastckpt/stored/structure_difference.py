"""How two checkpoints differ in everything but the bytes of their tensors: names, types, plain values, nesting."""

from __future__ import annotations

import fnmatch
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fastckpt.constants import (
    ENTRY_FLAG_CONJ,
    ENTRY_FLAG_NEG,
    ENTRY_FLAG_PARAMETER,
    ENTRY_FLAG_REQUIRES_GRAD,
)
from fastckpt.foreign.model import Opaque
from fastckpt.layout.entries import Entry
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import AttributedDict, Path, TensorRef, path_text
from fastckpt.layout.walk import is_plain
from fastckpt.stored.opened import Opened

T = TypeVar("T")
Change = tuple[Any, Any]
"""What something is in A and what it is in B."""

_FLAGS = {
    "requires_grad": ENTRY_FLAG_REQUIRES_GRAD,
    "parameter": ENTRY_FLAG_PARAMETER,
    "conj": ENTRY_FLAG_CONJ,
    "neg": ENTRY_FLAG_NEG,
}


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
        common: Names of the tensors that both have, in the order of A.
        only_a, only_b: The tensors that just one of them has.
        tensors: What changed about a common tensor: ``dtype``, ``shape``, ``layout``, ``requires_grad``, ...
        values: Plain values, by flat name.
        metadata: The same in the user's metadata.
        containers: Types of containers that are at the same place.
        shared_a, shared_b: Groups of common tensors that lie in one storage in just one of the checkpoints.
        notes: What was not compared, and why.
    """

    common: list[str] = field(default_factory=list)
    only_a: list[Entry] = field(default_factory=list)
    only_b: list[Entry] = field(default_factory=list)
    tensors: dict[str, dict[str, Change]] = field(default_factory=dict)
    values: NamedDifference[Any] = field(default_factory=NamedDifference)
    metadata: NamedDifference[Any] = field(default_factory=NamedDifference)
    containers: dict[str, Change] = field(default_factory=dict)
    shared_a: list[list[str]] = field(default_factory=list)
    shared_b: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether there is no difference (notes do not count)."""
        groups = (self.only_a, self.only_b, self.tensors, self.values, self.metadata, self.containers)
        return not any((*groups, self.shared_a, self.shared_b))


def compare_structure(a: Opened, b: Opened, *, keys: str | None = None) -> StructureDifference:
    """Compare everything but the bytes of tensors.

    Args:
        a: One checkpoint.
        b: The other one.
        keys: A glob: only tensors whose name matches are compared, and nothing else.
    """
    ours, theirs = (_chosen(file.by_name, keys) for file in (a, b))
    result = StructureDifference(
        common=[name for name in ours if name in theirs],
        only_a=[entry for name, entry in ours.items() if name not in theirs],
        only_b=[entry for name, entry in theirs.items() if name not in ours],
    )
    # What a .safetensors cannot hold is no difference between the two states.
    bare = "safetensors" in (a.format, b.format)
    for name in result.common:
        changes = _entry_changes(ours[name], theirs[name], bare=bare)
        if changes:
            result.tensors[name] = changes
    if keys is not None:
        return result
    if bare:
        if a.format != b.format:
            result.notes.append(
                "a .safetensors holds tensors only: values, containers, strides and sharing were not compared"
            )
        else:
            result.metadata = NamedDifference.of(a.metadata, b.metadata, same=same_value)
        return result
    _compare_trees(a, b, result)
    if a.format == b.format:
        result.metadata = NamedDifference.of(_flat(a.metadata)[0], _flat(b.metadata)[0], same=same_value)
    groups_a, groups_b = (_sharing(entries, set(result.common)) for entries in (ours, theirs))
    result.shared_a = [group for group in groups_a if group not in groups_b]
    result.shared_b = [group for group in groups_b if group not in groups_a]
    if result.common != [name for name in theirs if name in ours]:
        result.notes.append("the tensors stand in another order, which does not count as a difference")
    return result


def _chosen(entries: dict[str, Entry], keys: str | None) -> dict[str, Entry]:
    if keys is None:
        return entries
    return {name: entry for name, entry in entries.items() if fnmatch.fnmatchcase(name, keys)}


def _compare_trees(a: Opened, b: Opened, result: StructureDifference) -> None:
    values_a, containers_a = _flat(a.tree)
    values_b, containers_b = _flat(b.tree)
    result.values = NamedDifference.of(values_a, values_b, same=same_value)
    result.containers = {
        place: (kind, containers_b[place])
        for place, kind in containers_a.items()
        if containers_b.get(place, kind) != kind
    }


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


def _sharing(entries: dict[str, Entry], common: set[str]) -> list[list[str]]:
    """The common tensors that lie in the same storage, for each storage with several."""
    groups: dict[int, list[str]] = {}
    for name, entry in entries.items():
        if name in common and entry.nbytes:
            groups.setdefault(entry.storage, []).append(name)
    return [sorted(names) for names in groups.values() if len(names) > 1]


def _flat(tree: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain values by flat name, and the type of the container at every place."""
    values: list[tuple[Path, Any]] = []
    containers: dict[str, str] = {}

    def visit(node: Any, path: Path) -> None:
        if isinstance(node, dict) and (node or not path):
            containers[path_text(path)] = _dict_kind(node)
            for key, item in node.items():
                visit(item, (*path, key))
            attributes = vars(node).get("attributes") if type(node) is AttributedDict else None
            if attributes:
                visit(attributes, (*path, "__dict__"))
        elif isinstance(node, list | tuple) and not is_plain(node):
            containers[path_text(path)] = type(node).__name__
            for index, item in enumerate(node):
                visit(item, (*path, index))
        elif type(node) is not TensorRef:
            values.append((path, node))

    visit(tree, ())
    names = flat_names([path for path, _ in values])
    return dict(zip(names, (value for _, value in values), strict=True)), containers


def _dict_kind(node: dict[Any, Any]) -> str:
    """``dict``, ``OrderedDict``, and whether it has keys that are not text: 0 and "0" have the same flat name."""
    kind = "dict" if type(node) is dict else "OrderedDict"
    return f"{kind} with int keys" if any(type(key) is int for key in node) else kind


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
    if type(a) is Opaque:
        return bool(a.global_name == b.global_name)
    return bool(a == b)
