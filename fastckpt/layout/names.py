"""Flat names: the one string by which a tensor is called everywhere.

A flat name is the keys on the way to the tensor, joined with ``.``. Two paths
can join to the same text (``{"a.b": t, "a": {"b": u}}``, or the keys ``1`` and
``"1"``); the first in tree order keeps the plain name, each later one gets
``#2``, ``#3``, ... - the smallest that neither a plain name nor an earlier
suffix has taken. An empty name becomes ``tensor``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastckpt.layout.tree import Path


def flat_names(paths: Iterable[Path]) -> list[str]:
    """The flat name of every path, in the order given (tree order). All are distinct."""
    plain = list(_plain_names(paths))
    if len(set(plain)) == len(plain):
        return plain
    plain_names = set(plain)
    taken: set[str] = set()
    next_suffix: dict[str, int] = {}
    names = []
    for name in plain:
        unique = name
        suffix = next_suffix.get(name, 2)
        while unique in taken or (unique != name and unique in plain_names):
            unique = f"{name}#{suffix}"
            suffix += 1
        next_suffix[name] = suffix
        taken.add(unique)
        names.append(unique)
    return names


def _plain_names(paths: Iterable[Path]) -> Iterator[str]:
    above: Path = ()
    prefix = ""
    for path in paths:
        if path[:-1] != above:
            above = path[:-1]
            prefix = "".join([f"{key}." for key in above])
        yield (f"{prefix}{path[-1]}" if path else "") or "tensor"
