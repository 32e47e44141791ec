"""Whether `fastckpt repair` makes a damaged file whole, for whoever tells of the damage."""

from __future__ import annotations

from fastckpt.errors import FastckptError
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.seals.healing import hopeless_leaves
from fastckpt.seals.names import sums_path
from fastckpt.seals.remains import open_remains
from fastckpt.seals.standing import standing_of
from fastckpt.stored.why_another import why_another
from fastckpt.text import quoted


def command_that_heals(path: str) -> str | None:
    """``fastckpt repair PATH``, if that makes a damaged file whole; reads all of a file that has a seal with parity.

    None for a file that is whole by its own checksums, and was only written anew: repair refuses it.
    """
    try:
        with Source(path, may_be_empty=True) as source:
            threads = reading_threads(source, None)
            with open_remains(sums_path(path), threads=threads) as remains:
                if remains.sums.parity is None:
                    return None
                standing = standing_of(source, remains.sums, threads=threads)
                if standing.is_as_sealed or hopeless_leaves(remains, standing.bad_numbers):
                    return None
                return None if why_another(source, standing, threads=threads) else f"fastckpt repair {quoted(path)}"
    except FastckptError:
        return None
