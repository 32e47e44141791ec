"""The parity inside of a ``.fckpt``: what is left of it or, where all else proves itself, what it was."""

from __future__ import annotations

from fastckpt.errors import DamagedError
from fastckpt.io.source import Source
from fastckpt.seals.inside import InsideRemains, open_inside
from fastckpt.stored.inside_of_whole import inside_of_whole
from fastckpt.stored.verify import verify_source


def inside_or_whole(source: Source, *, threads: int) -> InsideRemains | None:
    """See above; None if there is none. Raises what `open_inside` and `inside_of_whole` do."""
    try:
        return open_inside(source, threads=threads)
    except DamagedError:
        report = verify_source(source, threads=threads, sealed=False)
        if (made := inside_of_whole(source, report, threads=threads)) is None:
            raise
        return made
