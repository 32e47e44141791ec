"""Which entries are meant: by name or glob, and whether two sets of them match."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Iterable, Sequence

from fastckpt.errors import MismatchError, TensorNotFoundError
from fastckpt.layout.entries import Entry


def select(entries: Sequence[Entry], keys: str | Iterable[str], path: str) -> list[Entry]:
    """The entries that a key names or a glob matches, in file order.

    Raises:
        TensorNotFoundError: A key matches nothing; the closest names are shown.
    """
    patterns = [keys] if isinstance(keys, str) else list(keys)
    by_name = {entry.name: entry for entry in entries}
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {pattern} if pattern in by_name else set(fnmatch.filter(by_name, pattern))
        if not matched:
            import difflib

            close = difflib.get_close_matches(pattern, list(by_name), 3)
            raise TensorNotFoundError(
                f"no tensor is called or matches {pattern!r}",
                path=path,
                expected=f"one of {', '.join(close or list(by_name)[:3])}"
                if by_name
                else "a name; there are no tensors",
                actual=pattern,
                next_step=f"fastckpt inspect {shlex.quote(path)}",
            )
        chosen |= matched
    return [entry for entry in entries if entry.name in chosen]


def require_match(entries: Sequence[Entry], destination: Sequence[Entry], path: str) -> None:
    """Raise MismatchError, with every difference, unless names, shapes and dtypes agree."""
    have = {entry.name: entry for entry in entries}
    want = {entry.name: entry for entry in destination}
    problems = [f"{name}: not in the checkpoint" for name in want if name not in have]
    problems += [f"{name}: not in the destination" for name in have if name not in want]
    for name in want.keys() & have.keys():
        a, b = have[name], want[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            problems.append(f"{name}: {a.dtype}{list(a.shape)} in the checkpoint, {b.dtype}{list(b.shape)} here")
        elif any(n > 1 and s and not t for n, s, t in zip(a.shape, a.stride, b.stride, strict=True)) and a.nbytes:
            problems.append(f"{name}: elements that differ in the checkpoint share their memory here (stride 0)")
    if problems:
        raise MismatchError(
            f"{len(problems)} differences, nothing was written:\n  " + "\n  ".join(sorted(problems)),
            path=path,
            next_step=f"fastckpt inspect {shlex.quote(path)}",
        )
