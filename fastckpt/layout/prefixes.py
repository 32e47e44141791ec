"""The prefix that a wrapper puts before every name of a model, and the same names without it.

torch.compile, DDP and a module that holds the model each put one before the
keys of ``state_dict()``, one before the other where they are nested. It is the
keys of the state that have it, so a model inside a state is found as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.errors import UsageError
from fastckpt.layout.entries import Entry
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import AttributedDict
from fastckpt.layout.walk import tensors_in

WRAPPERS: Final = ("_orig_mod.", "module.", "model.")
"""torch.compile; DDP, DataParallel and accelerate; Lightning, and whatever else calls it so."""
_MOST_NESTED: Final = 4
_MOST_TRIED: Final = 16
_MODULES: Final = "_metadata"


class Named(NamedTuple):
    """The tensors of a state, and its tree, which is decoded only if the names alone do not settle it."""

    entries: Sequence[Entry]
    tree: Callable[[], Any]


class Renaming(NamedTuple):
    """Which prefix has to go on each side for two sets of names to be equal; one of them is mostly empty."""

    prefix_a: str
    prefix_b: str


def wrapper_prefix(name: str) -> str:
    """What wrappers put before a name: ``_orig_mod.module.`` of ``_orig_mod.module.w``; "" if nothing."""
    at = 0
    for _ in range(_MOST_NESTED):
        at += next((len(word) for word in WRAPPERS if name.startswith(word, at) and len(name) > at + len(word)), 0)
    return name[:at]


def bare_name(name: str) -> str:
    """A name without what wrappers put before it."""
    return name[len(wrapper_prefix(name)) :]


def without_prefix(tree: Any, prefix: str) -> Any:
    """A copy of a tree in which no key begins with the prefix.

    The ``_metadata`` of a state dict, whose keys are names of modules, changes with it.

    Raises:
        UsageError: Two keys would be the same.
    """
    if isinstance(tree, dict):
        items: Any = type(tree)()
        for key, item in tree.items():
            new = key[len(prefix) :] if _has(key, prefix) else key
            if new in items or (new != key and new in tree):
                raise UsageError(f"without the prefix {prefix!r} two tensors or values would be called {new!r}")
            items[new] = without_prefix(item, prefix)
        if type(tree) is AttributedDict:
            items.attributes = {
                name: _modules_without(value, prefix) if name == _MODULES and isinstance(value, dict) else value
                for name, value in tree.attributes.items()
            }
        return items
    if type(tree) in (list, tuple):
        return type(tree)(without_prefix(item, prefix) for item in tree)
    return tree


def _has(key: object, prefix: str) -> bool:
    return isinstance(key, str) and key.startswith(prefix) and len(key) > len(prefix)


def _modules_without(modules: dict[Any, Any], prefix: str) -> dict[Any, Any]:
    """What is known of each module by its name; the wrappers themselves, ``""`` and ``_orig_mod``, are gone."""
    wrapped = prefix.removesuffix(".")
    if wrapped not in modules:
        return modules
    inner = [(key[len(prefix) :], value) for key, value in modules.items() if _has(key, prefix)]
    return type(modules)([("", modules[wrapped]), *inner])


def with_names(entries: Sequence[Entry], tree: Any) -> list[Entry]:
    """The entries under the names that they have in a tree with other keys, which refers to them by number."""
    places = [(path, ref.entry) for path, ref in tensors_in(tree)]
    names = dict(zip((number for _, number in places), flat_names([path for path, _ in places]), strict=True))
    return [entry._replace(name=names.get(number, entry.name)) for number, entry in enumerate(entries)]


def find_renaming(a: Named, b: Named) -> Renaming | None:
    """The shortest prefixes without which both sides have the same names; None if there are none, or they have now."""
    names_a, names_b = (frozenset(entry.name for entry in side.entries) for side in (a, b))
    if names_a == names_b or len(names_a) != len(names_b):
        return None
    sides_a, sides_b = _candidates(a.entries, a.tree()), _candidates(b.entries, b.tree())
    found = [Renaming(sides_a[names], sides_b[names]) for names in sides_a.keys() & sides_b.keys()]
    return min(found, key=lambda one: (len(one.prefix_a) + len(one.prefix_b), one), default=None)


def _candidates(entries: Sequence[Entry], tree: Any) -> dict[frozenset[str], str]:
    """The names as they are and without every prefix that a key of the tree has: which prefix makes them so."""
    found = {frozenset(entry.name for entry in entries): ""}
    for prefix in sorted(set(_prefixes(_keys(tree))), key=lambda prefix: (len(prefix), prefix))[:_MOST_TRIED]:
        try:
            renamed = with_names(entries, without_prefix(tree, prefix))
        except UsageError:
            continue
        found.setdefault(frozenset(entry.name for entry in renamed), prefix)
    return found


def _prefixes(keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        whole = wrapper_prefix(key)
        for end, letter in enumerate(whole, 1):
            if letter == ".":
                yield whole[:end]


def _keys(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, item in tree.items():
            if isinstance(key, str):
                yield key
            yield from _keys(item)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _keys(item)
