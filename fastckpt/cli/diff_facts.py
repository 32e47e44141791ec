"""All that ``fastckpt diff`` found about two files, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastckpt.cli.file_facts import leaf_value
from fastckpt.cli.render import Facts, error_facts, plain
from fastckpt.layout.entries import Entry
from fastckpt.stored.comparison import Comparison, TensorDifference
from fastckpt.stored.object_comparison import ObjectDifference
from fastckpt.stored.structure_difference import Change, NamedDifference

if TYPE_CHECKING:
    from fastckpt.tensor.difference import Tally


def pair_facts(found: Comparison) -> Facts:
    """The facts about two files."""
    structure = found.structure
    states = Counter(tensor.status for tensor in found.tensors.values())
    return {
        "a": found.a._asdict(),
        "b": found.b._asdict(),
        "same": found.same,
        "roots_equal": found.roots_equal,
        "totals": {
            **{status: states[status] for status in ("identical", "differs", "damaged", "unread")},
            "only_in_a": len(structure.only_a),
            "only_in_b": len(structure.only_b),
            "objects": len(found.objects),
            "objects_unknown": sum(part.status == "unknown" for part in found.objects.values()),
            "by_digests": sum(tensor.compared == "digests" for tensor in found.tensors.values()),
        },
        "only_in_a": _entries(structure.only_a),
        "only_in_b": _entries(structure.only_b),
        "values": _named(structure.values),
        "metadata": _named(structure.metadata),
        "objects": {place: _object(part) for place, part in found.objects.items() if part.status != "identical"},
        "containers": {place: _change(change) for place, change in structure.containers.items()},
        "shared_only_in_a": structure.shared_a,
        "shared_only_in_b": structure.shared_b,
        "tensors": {name: _tensor(tensor, structure.tensors.get(name, {})) for name, tensor in found.tensors.items()},
        "notes": structure.notes,
    }


def _entries(entries: Iterable[Entry]) -> Facts:
    return {entry.name: {"dtype": entry.dtype, "shape": list(entry.shape)} for entry in entries}


def _named(difference: NamedDifference[Any]) -> Facts:
    return {
        "only_in_a": {name: leaf_value(value) for name, value in difference.only_a.items()},
        "only_in_b": {name: leaf_value(value) for name, value in difference.only_b.items()},
        "changed": {name: _change(change) for name, change in difference.changed.items()},
    }


def _change(change: Change) -> Facts:
    """Both versions; their types too where only these differ, as of 1 and 1.0."""
    a, b = change
    facts = {"a": leaf_value(a), "b": leaf_value(b)}
    if type(a) is not type(b):
        facts |= {"type_a": type(a).__name__, "type_b": type(b).__name__}
    return facts


def _tensor(tensor: TensorDifference, changes: dict[str, Change]) -> Facts:
    return {
        "status": tensor.status,
        "compared": tensor.compared,
        "dtype": tensor.a.dtype,
        "shape": list(tensor.a.shape),
        "changes": {what: _change(change) for what, change in changes.items()},
        "numbers": None if tensor.numbers is None else _numbers(tensor.numbers),
        "error": None if tensor.error is None else error_facts(tensor.error),
    }


def _object(part: ObjectDifference) -> Facts:
    error = None if part.error is None else error_facts(part.error)
    return {"status": part.status, "reason": part.reason, "error": error}


def _numbers(tally: Tally) -> Facts:
    facts: Facts = plain(
        {
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
    )
    return facts
