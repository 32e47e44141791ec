"""Files that are there already: those a run was asked to make, and those it just made."""

from __future__ import annotations

from typing import Final

from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion
from fastckpt.conversion.same_content import Match, match
from fastckpt.errors import DamagedError, NotACheckpointError
from fastckpt.io.os_errors import status
from fastckpt.io.refuse_overwriting import holds_something_else
from fastckpt.nanochat.meta import read_meta_bytes
from fastckpt.stored.is_whole import is_whole

ALREADY_THERE: Final = "was there already and holds the same"


def find_finished(path: str, target: str, request: Request, *, threads: int) -> Conversion | None:
    """The conversion of ``path``, if ``target`` is what it would give.

    Returns:
        None if ``target`` is to be written (again).

    Raises:
        MismatchError: ``target`` holds something else, and is not ours to overwrite.
        DamagedError: ``path`` is damaged.
    """
    to_own = target.endswith(".fckpt")
    try:
        found = match(*_own_first(path, target))
    except (DamagedError, NotACheckpointError):
        if not is_whole(target, threads=threads):
            return None
        raise
    if found is None:
        if is_whole(target, threads=threads):
            refuse_other_content(path, target, to="fckpt" if to_own else "pt")
        return None
    if to_own:
        as_asked = (found.exact or not request.exact) and found.encoded == (request.codec != "none")
        if not as_asked or not is_whole(target, threads=threads):
            return None
    return Conversion(
        path,
        target,
        "fckpt" if to_own else found.kind,
        found.nbytes,
        found.tensors,
        source_verified=found.verified or not to_own,
        exact=found.exact,
        notes=(ALREADY_THERE,),
    )


def refuse_other_content(path: str, target: str, *, to: str) -> None:
    """Raise MismatchError unless ``target``, which differs from ``path``, was made of it before it was saved anew."""
    if to == "fckpt" and status(target).st_mtime_ns < status(path).st_mtime_ns:
        return
    raise holds_something_else(
        target,
        path,
        next_step="delete or move the one of them that is not wanted, or convert into another directory",
    )


def confirm(conversion: Conversion, *, threads: int) -> None:
    """Compare a converted file with its source, both read from disk and not from the page cache.

    Raises:
        DamagedError: They do not hold the same.
    """
    source, target = conversion.source, conversion.destination
    if conversion.format == "meta":
        same = read_meta_bytes(source) == read_meta_bytes(target)
    else:
        found: Match | None = match(*_own_first(source, target), cold=True)
        same = found is not None and (found.exact or not conversion.exact) and is_whole(target, threads=threads)
    if not same:
        raise DamagedError(
            "what was read back from disk is not what was converted",
            path=target,
            next_step="check the disk; the source was kept",
        )


def _own_first(path: str, target: str) -> tuple[str, str]:
    return (target, path) if target.endswith(".fckpt") else (path, target)
