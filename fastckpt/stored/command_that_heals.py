"""Whether `fastckpt repair` makes a damaged file whole, for whoever tells of the damage."""

from __future__ import annotations

from fastckpt.errors import FastckptError
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.seals.beside import seal_beside
from fastckpt.seals.healing import would_heal
from fastckpt.seals.standing import standing_of
from fastckpt.stored.why_another import why_another
from fastckpt.text import quoted


def command_that_heals(path: str) -> str | None:
    """``fastckpt repair PATH``, if that makes a damaged file whole; reads all of a file that has a seal with parity.

    None for a file that is whole by its own checksums, and was only written anew: repair refuses it.
    """
    try:
        with Source(path, may_be_empty=True) as source:
            sums = seal_beside(source)
            if sums is None or sums.parity is None:
                return None
            threads = reading_threads(source, None)
            standing = standing_of(source, sums, threads=threads)
            heals = would_heal(source, standing, threads=threads) and not why_another(source, standing, threads=threads)
            return f"fastckpt repair {quoted(path)}" if heals else None
    except FastckptError:
        return None
