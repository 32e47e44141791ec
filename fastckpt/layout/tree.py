"""The nesting of a state: a tree of containers and plain values whose tensors are references into the entry table.

Torch's own small objects appear as references too (`DTypeRef`, `SizeRef`,
`DeviceRef`), so this module, like all of the layout, works where torch is not
installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastckpt.layout.decode_tree import decode_tree
from fastckpt.layout.encode_tree import encode_tree
from fastckpt.layout.named import NamedRef, SizeRef, TensorRef, parts
from fastckpt.layout.tree_nodes import AttributedDict, DeviceRef, DTypeRef, Path, path_text

__all__ = [
    "AttributedDict",
    "DTypeRef",
    "DeviceRef",
    "NamedRef",
    "Path",
    "SizeRef",
    "TensorRef",
    "decode_tree",
    "descend",
    "encode_tree",
    "path_text",
    "walk_tree",
]


def descend(
    path: Path, node: object, inside: Callable[[Path, Any], Iterator[tuple[Path, Any]] | None]
) -> Iterator[tuple[Path, Any]]:
    """Yield ``(path, part)`` for every part of ``node`` that nothing is inside of, in order.

    Generators inside each other would pass on every part level by level.

    Args:
        path: Where ``node`` is.
        node: The root.
        inside: Gives the parts of a node with their paths; None if it has none.
    """
    levels = [iter([(path, node)])]
    while levels:
        for where, part in levels[-1]:
            parts_of_it = inside(where, part)
            if parts_of_it is not None:
                levels.append(parts_of_it)
                break
            yield where, part
        else:
            levels.pop()


def walk_tree(state: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield ``(path, leaf)`` for every node of a decoded tree that is not a container or named value, in order."""
    return descend(path, state, _inside)


def _inside(path: Path, node: Any) -> Iterator[tuple[Path, Any]] | None:
    if isinstance(node, dict):
        return (((*path, key), item) for key, item in node.items())
    if isinstance(node, list | tuple):
        return (((*path, index), item) for index, item in enumerate(node))
    if type(node) is NamedRef:
        return (((*path, *step), item) for step, item in parts(node))
    return None
