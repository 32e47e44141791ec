"""All that ``fastckpt diff`` found about two files, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypedDict

from fastckpt.cli.render import ErrorFacts, error_facts
from fastckpt.layout.entries import Entry
from fastckpt.stored.comparison import Comparison, Side, TensorDifference
from fastckpt.stored.leaf_value import leaf_value
from fastckpt.stored.object_comparison import ObjectDifference
from fastckpt.stored.structure_difference import Change, NamedDifference
from fastckpt.verdicts import Verdict

if TYPE_CHECKING:
    from fastckpt.tensor.difference import Tally


class DiffTotals(TypedDict):
    identical: int
    differs: int
    damaged: int
    unread: int
    only_in_a: int
    only_in_b: int
    objects: int
    objects_unknown: int
    by_digests: int


class Prefixes(TypedDict):
    prefix_a: str
    prefix_b: str


class TensorType(TypedDict):
    dtype: str
    shape: list[int]


class ChangeTypes(TypedDict, total=False):
    type_a: str
    type_b: str


class ChangeFacts(ChangeTypes):
    a: Any
    b: Any


class NamedChanges(TypedDict):
    only_in_a: dict[str, Any]
    only_in_b: dict[str, Any]
    changed: dict[str, ChangeFacts]


class BothCounts(TypedDict):
    a: int
    b: int


class DifferenceNumbers(TypedDict):
    relative_l2: float
    max_abs: float
    cosine: float | None
    elements: int
    differing: int
    differing_bits: int | None
    values_equal: bool
    nan: BothCounts
    inf: BothCounts


class TensorChange(TypedDict):
    status: str
    compared: str | None
    dtype: str
    shape: list[int]
    changes: dict[str, ChangeFacts]
    numbers: DifferenceNumbers | None
    error: ErrorFacts | None


class ComparedFiles(TypedDict):
    a: Side
    b: Side
    same: bool | None
    roots_equal: bool
    totals: DiffTotals
    renamed: Prefixes | None
    only_in_a: dict[str, TensorType]
    only_in_b: dict[str, TensorType]
    values: NamedChanges
    metadata: NamedChanges
    objects: dict[str, ObjectDifference]
    containers: dict[str, ChangeFacts]
    shared_only_in_a: list[list[str]]
    shared_only_in_b: list[list[str]]
    tensors: dict[str, TensorChange]
    uncompared: list[str]
    notes: list[str]


class DiffDocument(ComparedFiles):
    seconds: float


class DiffPair(DiffDocument):
    role: str


class OnlyPath(TypedDict):
    path: str


class FailedPair(TypedDict):
    role: str
    a: OnlyPath
    b: OnlyPath
    same: None
    error: ErrorFacts


class DiffDirectoriesDocument(TypedDict):
    a: str
    b: str
    same: bool
    only_in_a: list[str]
    only_in_b: list[str]
    files: list[DiffPair | FailedPair]


def pair_facts(found: Comparison) -> ComparedFiles:
    """The facts about two files."""
    structure, renamed = found.structure, found.structure.renamed
    states = Counter(tensor.status for tensor in found.tensors.values())
    return {
        "a": found.a,
        "b": found.b,
        "same": found.same,
        "roots_equal": found.roots_equal,
        "totals": {
            "identical": states["identical"],
            "differs": states["differs"],
            "damaged": states["damaged"],
            "unread": states["unread"],
            "only_in_a": len(structure.only_a),
            "only_in_b": len(structure.only_b),
            "objects": len(found.objects),
            "objects_unknown": sum(part.status == "unknown" for part in found.objects.values()),
            "by_digests": sum(tensor.compared == "digests" for tensor in found.tensors.values()),
        },
        "renamed": None if renamed is None else {"prefix_a": renamed.prefix_a, "prefix_b": renamed.prefix_b},
        "only_in_a": _entries(structure.only_a),
        "only_in_b": _entries(structure.only_b),
        "values": _named(structure.values),
        "metadata": _named(structure.metadata),
        "objects": {place: part for place, part in found.objects.items() if part.status != Verdict.IDENTICAL},
        "containers": {place: _change(change) for place, change in structure.containers.items()},
        "shared_only_in_a": structure.shared_a,
        "shared_only_in_b": structure.shared_b,
        "tensors": {name: _tensor(tensor, structure.tensors.get(name, {})) for name, tensor in found.tensors.items()},
        "uncompared": structure.uncompared,
        "notes": structure.notes,
    }


def _entries(entries: Iterable[Entry]) -> dict[str, TensorType]:
    return {entry.name: {"dtype": entry.dtype, "shape": list(entry.shape)} for entry in entries}


def _named(difference: NamedDifference[Any]) -> NamedChanges:
    return {
        "only_in_a": {name: leaf_value(value) for name, value in difference.only_a.items()},
        "only_in_b": {name: leaf_value(value) for name, value in difference.only_b.items()},
        "changed": {name: _change(change) for name, change in difference.changed.items()},
    }


def _change(change: Change) -> ChangeFacts:
    """Both versions; their types too where only these differ, as of 1 and 1.0."""
    a, b = change
    facts: ChangeFacts = {"a": leaf_value(a), "b": leaf_value(b)}
    if type(a) is not type(b):
        facts |= {"type_a": type(a).__name__, "type_b": type(b).__name__}
    return facts


def _tensor(tensor: TensorDifference, changes: dict[str, Change]) -> TensorChange:
    return {
        "status": tensor.status,
        "compared": tensor.compared,
        "dtype": tensor.a.dtype,
        "shape": list(tensor.a.shape),
        "changes": {what: _change(change) for what, change in changes.items()},
        "numbers": None if tensor.numbers is None else _numbers(tensor.numbers),
        "error": None if tensor.error is None else error_facts(tensor.error),
    }


def _numbers(tally: Tally) -> DifferenceNumbers:
    return {
        "relative_l2": tally.relative,
        "max_abs": tally.max_abs,
        "cosine": tally.cosine,
        "elements": tally.elements,
        "differing": tally.differing,
        "differing_bits": tally.differing_bits,
        "values_equal": tally.differing == 0,
        "nan": {"a": tally.nan_a, "b": tally.nan_b},
        "inf": {"a": tally.inf_a, "b": tally.inf_b},
    }
