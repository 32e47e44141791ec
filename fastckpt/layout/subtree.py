"""A part of a decoded tree, by the keys on the way to it or by the beginning of the names in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fastckpt.layout.named import parts
from fastckpt.layout.prefixes import Named, with_names
from fastckpt.layout.tree import NamedRef, Path, TensorRef
from fastckpt.layout.walk import map_tensors

NOTHING: Final = object()
"""What is found where nothing is: None is a value."""


def at(tree: Any, path: Path) -> Any:
    """What is at a path; `NOTHING` if nothing is."""
    for key in path:
        if isinstance(tree, list | tuple):
            tree = dict(enumerate(tree))
        if not isinstance(tree, dict) or key not in tree:
            return NOTHING
        tree = tree[key]
    return tree


def below(tree: Any, name: str) -> Any:
    """What goes by a flat name, or all whose names begin with it and a dot; `NOTHING` if nothing does.

    A key can have dots in it, as those of a model's state dict do: ``blocks.0`` stands for a dict of the keys that
    begin with ``blocks.0.``, without that. Where several keys join to the same name, the first one counts.
    """
    inner = {}
    for key, item in _children(tree):
        if key == name:
            return item
        if key is None or name.startswith(f"{key}."):
            found = below(item, name if key is None else name[len(key) + 1 :])
            if found is not NOTHING:
                return found
        elif key.startswith(f"{name}."):
            inner[key[len(name) + 1 :]] = item
    return inner or NOTHING


def part_of(whole: Named, name: str) -> Named | None:
    """What goes by a flat name or begins with it, as a state of its own; None if nothing does."""
    tree = below(whole.tree(), name)
    if tree is NOTHING:
        return None
    numbers: list[int] = []

    def count(ref: TensorRef) -> TensorRef:
        numbers.append(ref.entry)
        return TensorRef(len(numbers) - 1)

    own = map_tensors(tree, count)
    return Named(with_names([whole.entries[number] for number in numbers], own), lambda: own)


def _children(tree: Any) -> Iterator[tuple[str | None, Any]]:
    """What is right inside of a node, each with the steps to it as text; None if there are none."""
    if isinstance(tree, dict):
        yield from ((str(key), item) for key, item in tree.items())
    elif isinstance(tree, list | tuple):
        yield from ((str(index), item) for index, item in enumerate(tree))
    elif type(tree) is NamedRef:
        yield from ((".".join(map(str, steps)) if steps else None, item) for steps, item in parts(tree))
