"""Plain values of a state that `load_into` fills: the step, a loss, the state of a generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastckpt.layout.tree import Path
from fastckpt.layout.walk import has_objects, tensors_below
from fastckpt.tensor.flatten import FlatState
from fastckpt.tensor.rebuild import resolve_tree


def take_values(state: Any, flat: FlatState, tree: Callable[[], Any]) -> None:
    """Replace the plain values in the dicts and lists of a state by those at the same places of a tree.

    What holds a tensor, an object, or something that cannot be saved is none.

    Args:
        state: The state.
        flat: The same, taken apart.
        tree: What gives the tree.
    """
    if not _may_have_plain(state):
        return
    others = set()
    for path in (*flat.paths, *(one.path for one in flat.stateful), *flat.refused):
        others |= {path[:size] for size in range(len(path) + 1)}
    _take(state, tree(), others, ())


def _items(state: Any) -> list[tuple[Any, Any]]:
    if isinstance(state, dict):
        return list(state.items())
    return list(enumerate(state)) if isinstance(state, list) else []


def _may_have_plain(state: Any) -> bool:
    """Whether anything but tensors is in it; the tree of a checkpoint of many tensors takes long to read."""
    return any(
        _may_have_plain(item) if _items(item) else not isinstance(item, torch.Tensor) for _, item in _items(state)
    )


def _take(state: Any, tree: Any, others: set[Path], path: Path) -> None:
    for key, item in _items(state):
        if isinstance(tree, dict):
            if key not in tree:
                continue
        elif not (isinstance(tree, list) and key < len(tree)):
            return
        there = tree[key]
        if (*path, key) in others:
            _take(item, there, others, (*path, key))
        elif not tensors_below(there) and not has_objects(there):
            state[key] = resolve_tree(there, lambda ref: ref)
