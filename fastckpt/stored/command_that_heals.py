"""Whether `fastckpt repair` makes a damaged file whole, for whoever tells of the damage."""

from __future__ import annotations

from fastckpt.errors import FastckptError
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.seals.names import sums_path
from fastckpt.seals.remains import open_remains
from fastckpt.stored.healing_plan import healing_plan
from fastckpt.text import quoted


def command_that_heals(path: str) -> str | None:
    """``fastckpt repair PATH``, if that makes a damaged file whole; reads all of a file that has a seal with parity."""
    try:
        with Source(path, may_be_empty=True) as source:
            threads = reading_threads(source, None)
            with open_remains(sums_path(path), threads=threads) as remains:
                plan = healing_plan(source, remains, threads=threads)
    except FastckptError:
        return None
    heals = plan is not None and not plan.standing.is_as_sealed and not plan.hopeless
    return f"fastckpt repair {quoted(path)}" if heals else None
