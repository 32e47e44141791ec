"""Going through a decoded tree: its leaves, its plain values, its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastckpt.layout.tree import AttributedDict, NamedRef, Path, TensorRef


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield ``(path, leaf)``: tensor references and plain values; a list or tuple of plain values is one of those."""
    if isinstance(tree, dict):
        for key, item in tree.items():
            yield from leaves(item, (*path, key))
    elif isinstance(tree, list | tuple) and not is_plain(tree):
        for index, item in enumerate(tree):
            yield from leaves(item, (*path, index))
    elif type(tree) is NamedRef and not is_plain([tree.payload]):
        yield from leaves(tree.payload, (*path, tree.name))
    else:
        yield path, tree


def is_plain(items: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list or tuple holds plain values only."""
    return not any(
        type(item) in (TensorRef, NamedRef)
        or isinstance(item, dict)
        or (isinstance(item, list | tuple) and not is_plain(item))
        for item in items
    )


def tensors_below(tree: Any) -> list[int]:
    """Numbers of the entries of all tensors in a part of a tree."""
    return [leaf.entry for _, leaf in leaves(tree) if type(leaf) is TensorRef]


def map_tensors(tree: Any, change: Callable[[TensorRef], object]) -> Any:
    """A copy of a tree with another value in place of every tensor; containers keep their types and order."""
    if type(tree) is TensorRef:
        return change(tree)
    if isinstance(tree, dict):
        items: Any = type(tree)((key, map_tensors(item, change)) for key, item in tree.items())
        if type(tree) is AttributedDict:
            items.attributes = map_tensors(tree.attributes, change)
        return items
    if type(tree) in (list, tuple):
        return type(tree)(map_tensors(item, change) for item in tree)
    return tree


def is_optimizer(value: Any) -> bool:
    """Whether a node is what ``Optimizer.state_dict()`` gives: a dict ``state``, and ``param_groups``, a list of dicts.

    This much and no less: whoever asks goes through the groups and looks for keys in them.
    """
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, list) and all(isinstance(group, dict) for group in groups)


def has_optimizer(tree: Any) -> bool:
    """Whether a state is an optimizer's, or a list or dict with one in it."""
    if is_optimizer(tree):
        return True
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return any(is_optimizer(item) for item in items)


_DEPTH = 3
"""How deep inside a checkpoint an optimizer is looked for."""


def find_optimizers(tree: Any, path: Path = ()) -> Iterator[tuple[Path, dict[Any, Any]]]:
    """Yield path and state dict of every optimizer; a list of them is common in older checkpoints."""
    if is_optimizer(tree):
        yield path, tree
    elif len(path) < _DEPTH:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
        for key, item in items:
            yield from find_optimizers(item, (*path, key))
