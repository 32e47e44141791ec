"""Whether parity inside of a damaged ``.fckpt`` makes that whole again, for the report on it."""

from __future__ import annotations

from fastckpt.errors import DamagedError, FastckptError
from fastckpt.findings import Report
from fastckpt.io.source import Source
from fastckpt.seals.healing import hopeless_leaves
from fastckpt.seals.inside import open_inside
from fastckpt.stored.inside_of_whole import inside_of_whole
from fastckpt.stored.written_anew import why_written_anew


def would_heal_inside(source: Source, report: Report, *, threads: int) -> bool:
    """Whether all that is wrong with an open file comes back by its parity; ``report`` is what its own checksums say.

    All that the parity covers is read once more.
    """
    try:
        try:
            remains = open_inside(source, threads=threads)
        except DamagedError:
            remains = inside_of_whole(source, report, threads=threads)
        if remains is None:
            return False
        standing = remains.standing(source, threads=threads)
        if not standing.bad and not remains.damage_behind(source):
            return False
        if hopeless_leaves(remains, standing.bad_numbers):
            return False
        return not why_written_anew(report, standing, source, threads=threads)
    except FastckptError:
        return False
