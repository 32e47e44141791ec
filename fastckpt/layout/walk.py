"""Going through a decoded tree: its leaves, its plain values, its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final

from fastckpt.layout.named import ATTRIBUTES, keys_of, parts
from fastckpt.layout.tree import AttributedDict, NamedRef, Path, TensorRef, descend

_PLAIN: Final = frozenset((type(None), bool, int, float, complex, str, bytes))


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield ``(path, leaf)``: tensor references and plain values; a list or tuple of plain values is one of those."""
    mixed = mixed_parts(tree)

    def inside(path: Path, node: Any) -> Iterator[tuple[Path, Any]] | None:
        if isinstance(node, dict):
            return (((*path, key), item) for key, item in node.items())
        if id(node) not in mixed:
            return None
        if type(node) is not NamedRef:
            return (((*path, index), item) for index, item in enumerate(node))
        # What has the place of the whole is what it is called, and no value in it.
        return (
            ((*path, *step), item)
            for step, item in parts(node)
            if step or node.name == "object" or type(item) is not str
        )

    return descend(path, tree, inside)


def mixed_parts(tree: Any) -> set[int]:
    """The ``id`` of every list, tuple and named value in a tree that holds more than plain values."""
    found: set[int] = set()

    def is_plain(node: Any) -> bool:
        if isinstance(node, list | tuple):
            plain = True
            for item in node:
                if type(item) not in _PLAIN and not is_plain(item):
                    plain = False
            if not plain:
                found.add(id(node))
            return plain
        if type(node) is NamedRef and not is_plain(node.payload):
            found.add(id(node))
        if isinstance(node, dict):
            for item in node.values():
                is_plain(item)
            if type(node) is AttributedDict:
                is_plain(node.attributes)
        return type(node) not in (TensorRef, NamedRef) and not isinstance(node, dict)

    is_plain(tree)
    return found


def tensors_in(tree: Any, path: Path = ()) -> Iterator[tuple[Path, TensorRef]]:
    """Yield ``(path, reference)`` of every tensor, in tree order, by the steps that its flat name is made of."""
    return (found for found in descend(path, tree, _inside) if type(found[1]) is TensorRef)


def _inside(path: Path, node: Any) -> Iterator[tuple[Path, Any]] | None:
    """The parts of a node, its attributes among them, with their paths."""
    if type(node) is NamedRef:
        return (((*path, *step), item) for step, item in parts(node))
    if isinstance(node, dict):
        items = (((*path, key), item) for key, item in node.items())
        return chain(items, [((*path, ATTRIBUTES), node.attributes)]) if type(node) is AttributedDict else items
    return (((*path, index), item) for index, item in enumerate(node)) if isinstance(node, list | tuple) else None


def tensors_below(tree: Any) -> list[int]:
    """Numbers of the entries of all tensors in a part of a tree."""
    if type(tree) in _PLAIN:
        return []
    return [ref.entry for _, ref in tensors_in(tree)]


def objects_in(tree: Any, path: Path = ()) -> Iterator[tuple[Path, NamedRef]]:
    """Yield ``(path, node)`` of every object that is not understood; those inside of one go without saying."""

    def inside(path: Path, node: Any) -> Iterator[tuple[Path, Any]] | None:
        if type(node) is not NamedRef:
            return _inside(path, node)
        if node.name == "object":
            return None
        keys = (((*path, index), key) for index, key in enumerate(keys_of(node)))
        return chain(keys, (((*path, *step), item) for step, item in parts(node)))

    return (found for found in descend(path, tree, inside) if type(found[1]) is NamedRef)


def has_objects(tree: Any) -> bool:
    """Whether a part of a tree holds an object that is not understood."""
    return any(True for _ in objects_in(tree))


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
    if type(tree) is NamedRef:
        return NamedRef(tree.name, map_tensors(tree.payload, change))
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
