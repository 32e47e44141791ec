"""Whether `fastckpt repair` makes a damaged file whole, for whoever tells of the damage."""

from __future__ import annotations

from fastckpt.errors import FastckptError
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.stored.healing_plan import healing_plan
from fastckpt.text import quoted


def command_that_heals(path: str) -> str | None:
    """``fastckpt repair PATH``, if that makes a damaged file whole; reads all of a file that has parity."""
    try:
        with (
            Source(path, may_be_empty=True) as source,
            healing_plan(source, threads=reading_threads(source, None)) as plan,
        ):
            heals = plan is not None and plan.heals_all
        return f"fastckpt repair {quoted(path)}" if heals else None
    except FastckptError:
        return None
