"""Which entries are meant: by name or glob, and whether two sets of them match."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastckpt.errors import MismatchError, TensorNotFoundError
from fastckpt.layout.entries import Entry
from fastckpt.text import quoted, some


def select(entries: Sequence[Entry], keys: str | Iterable[str], path: str) -> list[Entry]:
    """The entries that a key names or a glob matches, in file order.

    Raises:
        TensorNotFoundError: A key matches nothing; the closest names are shown.
    """
    chosen = set(select_names([entry.name for entry in entries], keys, path))
    return [entry for entry in entries if entry.name in chosen]


def select_names(names: Sequence[str], keys: str | Iterable[str], path: str) -> list[str]:
    """The names that a key is or a glob matches, in their order. Raises what `select` does."""
    known = dict.fromkeys(names)
    chosen: set[str] = set()
    for pattern in [keys] if isinstance(keys, str) else keys:
        matched = {pattern} if pattern in known else set(fnmatch.filter(known, pattern))
        if not matched:
            import difflib

            close = difflib.get_close_matches(pattern, list(known), 3)
            raise TensorNotFoundError(
                f"no tensor is called or matches {pattern!r}",
                path=path,
                expected=f"one of {some(close or known)}" if known else "a name; there are no tensors",
                actual=pattern,
                next_step=f"fastckpt inspect {quoted(path)}",
            )
        chosen |= matched
    return [name for name in names if name in chosen]


def matches(name: str, keys: str | Iterable[str]) -> bool:
    """Whether a key is this name, or a glob that matches it."""
    return any(name == key or fnmatch.fnmatchcase(name, key) for key in ([keys] if isinstance(keys, str) else keys))


class Match(NamedTuple):
    """How the entries of a checkpoint and those of a destination go together.

    Attributes:
        missing: Names that only the destination has.
        unexpected: Names that only the checkpoint has.
        differing: Of names that both have, what cannot go together, one sentence each.
    """

    missing: list[str]
    unexpected: list[str]
    differing: list[str]

    def lines(self) -> list[str]:
        """All differences, one a line."""
        only_here = [f"{name}: not in the checkpoint" for name in self.missing]
        return only_here + [f"{name}: not in the destination" for name in self.unexpected] + self.differing


def match(entries: Sequence[Entry], destination: Sequence[Entry]) -> Match:
    """Compare names, shapes and dtypes."""
    have = {entry.name: entry for entry in entries}
    want = {entry.name: entry for entry in destination}
    found = Match([name for name in want if name not in have], [name for name in have if name not in want], [])
    for name in want.keys() & have.keys():
        a, b = have[name], want[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found.differing.append(f"{name}: {a.dtype}{list(a.shape)} in the checkpoint, {b.dtype}{list(b.shape)} here")
        elif any(n > 1 and s and not t for n, s, t in zip(a.shape, a.stride, b.stride, strict=True)) and a.nbytes:
            found.differing.append(f"{name}: elements that differ in the checkpoint share their memory here (stride 0)")
    return found


def refuse(differences: Sequence[str], path: str) -> MismatchError:
    """The error that lists them all."""
    return MismatchError(
        f"{len(differences)} difference{'s' * (len(differences) != 1)}, nothing was written:\n  "
        + "\n  ".join(sorted(differences)),
        path=path,
        next_step=f"fastckpt inspect {quoted(path)}",
    )


def require_match(entries: Sequence[Entry], destination: Sequence[Entry], path: str) -> None:
    """Raise MismatchError, with every difference, unless names, shapes and dtypes agree."""
    differences = match(entries, destination).lines()
    if differences:
        raise refuse(differences, path)
