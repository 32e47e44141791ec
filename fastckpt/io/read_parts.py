"""Many small parts of a file at once: read one after the other, the disk would idle between any two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from fastckpt import _core
from fastckpt.constants import PACK_ALIGNMENT
from fastckpt.io.memory import allocate
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, Move
from fastckpt.layout.blocks import Extent, align


def read_parts(source: Source, parts: Sequence[Extent], *, threads: int | None = None) -> list[memoryview | None]:
    """The bytes of each part; None where they could not be had: reading it alone (`Source.read`) says why.

    Args:
        source: The file.
        parts: Where they lie in it, or do not; memory for all of them is taken.
        threads: How many are read at a time; None takes what the medium wants.

    Raises:
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    inside = [n for n, part in enumerate(parts) if part.offset >= 0 and 0 < part.size <= source.size - part.offset]
    found: list[memoryview | None] = [None] * len(parts)
    if not inside:
        return found
    places = [0, *accumulate(align(parts[n].size, PACK_ALIGNMENT) for n in inside)]
    memory = allocate(places[-1])
    base = _core.address(memory)
    moved = source.transfer(
        [Move(parts[n].offset, base + at, parts[n].size) for n, at in zip(inside, places, strict=False)],
        sink=MEMORY,
        threads=reading_threads(source, threads),
        leaves=False,
    )
    for number, at in zip(inside, places, strict=False):
        found[number] = memory[at : at + parts[number].size]
    for fault in moved.faults:
        found[inside[fault.move]] = None
    return found
