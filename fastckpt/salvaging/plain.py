"""What a ``.pt`` written anew cannot hold, as the plain values it is made of.

A pickle can hold any object, but only the program that has its class can write one. Without the pickle that was saved,
a dataclass comes back as the dict of its fields, an enum as its value.
"""

from __future__ import annotations

from typing import Any

from fastckpt.foreign.pickle_named import unwritable
from fastckpt.layout.named import has_tensor, parts
from fastckpt.layout.tree import AttributedDict, NamedRef


def lost_names(tree: Any) -> list[str]:
    """The names of all that only the pickle that was saved can hold; each once."""
    return list(dict.fromkeys(why.partition("; ")[0] for _, why in unwritable(tree, arrays=False)))


def has_values(tree: Any) -> bool:
    """Whether there is more in a tree than tensors, plain values and containers: values of Python, objects."""
    if type(tree) is NamedRef:
        return tree.name != "tensor" or any(has_values(item) for _, item in parts(tree))
    if isinstance(tree, dict):
        return any(map(has_values, tree.values())) or (type(tree) is AttributedDict and has_values(tree.attributes))
    return isinstance(tree, list | tuple) and any(map(has_values, tree))


def as_plain(tree: Any) -> Any:
    """The tree with plain containers in place of what only the pickle that was saved can hold."""
    if type(tree) is NamedRef:
        if tree.name == "tensor":
            return NamedRef(tree.name, as_plain(tree.payload))
        if not lost_names(tree):
            return tree
        if tree.name in ("set", "frozenset"):
            return [as_plain(item) for item in tree.payload]
        return _as_what_is_inside([(step, as_plain(item)) for step, item in parts(tree)])
    if isinstance(tree, dict):
        items: Any = type(tree)((key, as_plain(item)) for key, item in tree.items())
        if type(tree) is AttributedDict:
            items.attributes = as_plain(tree.attributes)
        return items
    if type(tree) in (list, tuple):
        return type(tree)(as_plain(item) for item in tree)
    return tree


def _as_what_is_inside(inside: list[tuple[tuple[object, ...], Any]]) -> Any:
    """The plain value for what a named value is made of: its parts that have a name, or that which has its own.

    Of an array, or a tensor with hooks, what has the name of the whole holds the numbers.
    """
    named = {step[0]: item for step, item in inside if step}
    itself = [item for step, item in inside if not step]
    numbers = [item for item in itself if has_tensor(item)]
    if numbers and not has_tensor(named):
        return numbers[0]
    return named or (itself[0] if len(itself) == 1 else tuple(itself))
