"""Objects that are not understood, in two checkpoints: compared by what they are made of.

Their tensors have names and are compared as all others are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import AttributedDict, NamedRef, TensorRef, path_text
from fastckpt.layout.walk import objects_in
from fastckpt.stored.opened import Opened
from fastckpt.stored.structure_difference import same_value


@dataclass(frozen=True, slots=True)
class ObjectDifference:
    """What was found about one object.

    Attributes:
        status: ``identical``, ``differs``, ``damaged``, or ``unknown``: it cannot be compared.
        reason: Why, unless it is identical.
    """

    status: str
    reason: str = ""


def compare_objects(a: Opened, b: Opened) -> dict[str, ObjectDifference]:
    """Compare all objects of two checkpoints that are not understood, by their places."""
    ours, theirs = ({path_text(path): node for path, node in objects_in(side.tree)} for side in (a, b))
    result: dict[str, ObjectDifference] = {}
    for place in ours | theirs:
        one, other = ours.get(place), theirs.get(place)
        if one is None or other is None:
            result[place] = ObjectDifference("differs", f"only in {(b if one is None else a).path}")
        elif not _alike(one, other, a.entries, b.entries):
            result[place] = ObjectDifference("differs", "it is made of other values")
        elif _hides(one):
            result[place] = ObjectDifference("unknown", "not all that is in it can be seen")
        else:
            result[place] = ObjectDifference("identical")
    return result


def _alike(a: Any, b: Any, entries_a: list[Entry], entries_b: list[Entry]) -> bool:
    """Whether two nodes are the same but for the bytes of their tensors."""
    if type(a) is not type(b):
        return False
    if type(a) is TensorRef:
        one, other = entries_a[a.entry], entries_b[b.entry]
        return (one.name, one.dtype, one.shape, one.flags) == (other.name, other.dtype, other.shape, other.flags)
    if type(a) is NamedRef:
        return a.name == b.name and _alike(a.payload, b.payload, entries_a, entries_b)
    if isinstance(a, Mapping):
        if type(a) is AttributedDict and not _alike(a.attributes, b.attributes, entries_a, entries_b):
            return False
        return list(a) == list(b) and all(_alike(a[key], b[key], entries_a, entries_b) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_alike(x, y, entries_a, entries_b) for x, y in zip(a, b, strict=True))
    return same_value(a, b)


def _hides(node: Any) -> bool:
    """Whether something in an object is not in the tree."""
    if type(node) is NamedRef:
        hidden = node.name == "object" and not {"bytes", "not_shown"}.isdisjoint(node.payload[1])
        return hidden or _hides(node.payload)
    if isinstance(node, Mapping):
        return any(map(_hides, node.values())) or (type(node) is AttributedDict and _hides(node.attributes))
    return isinstance(node, list | tuple) and any(map(_hides, node))
