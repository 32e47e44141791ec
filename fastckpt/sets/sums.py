"""What proves a file that has no checksum of its own: the digests of its leaves, in ``NAME.fckpt-sums`` beside it.

That is a ``.fckpt`` file with the state ``{"digests": uint8 [8 * leaves]}``, and with name and size of the file in
its metadata. A ``.safetensors`` needs it.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from typing import Any, Final

from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError
from fastckpt.foreign.safetensors_table import read_table
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.source import Source
from fastckpt.io.transfer import NOWHERE, Move, transfer
from fastckpt.sets.model import Member, Problem, kind_of_fault
from fastckpt.stored.open_file import open_file
from fastckpt.text import some

SUFFIX: Final = ".fckpt-sums"
DIGESTS: Final = "digests"


def digests_of(source: Source, *, threads: int) -> memoryview:
    """The digest of every leaf of a file, the last one padded with zeros.

    Raises:
        DamagedError, CheckpointIOError: It was cut meanwhile, or cannot be read.
    """
    moved = transfer(
        [Move(0, 0, source.size)], source=source.fd, source_direct=source.direct_fd, sink=NOWHERE, threads=threads
    )
    for fault in moved.faults:
        source.raise_fault(fault.offset, fault.errno)
    return moved.leaves


def about(source: Source) -> dict[str, Any]:
    """The metadata of the sums of a file."""
    return {"seal": {"name": os.path.basename(source.path), "size": source.size, "leaf": LEAF_SIZE}}


def differences(member: Member, source: Source, *, threads: int) -> list[Problem]:
    """What a file is no longer as its sums say."""
    path = source.path + SUFFIX
    try:
        with open_file(path) as sums:
            if sums.metadata != about(source):
                raise DamagedError(f"{member.name} is of another size or name than its sums say", path=source.path)
            entry = sums.by_name.get(DIGESTS)
            count = -(-source.size // LEAF_SIZE)
            if entry is None or entry.nbytes != 8 * count:
                raise DamagedError("these are not the sums of a file", path=path)
            start = entry.storage_offset
            wanted = bytes(sums.read(entry.storage, start, start + entry.nbytes))
        found = bytes(digests_of(source, threads=threads))
    except FastckptError as error:
        return [Problem(kind_of_fault(error), error.path or path, error.message, exit_code=error.exit_code)]
    bad = [leaf for leaf in range(count) if wanted[leaf * 8 : leaf * 8 + 8] != found[leaf * 8 : leaf * 8 + 8]]
    if not bad:
        return []
    tensors = _tensors_in(source, bad)
    named = f": {some(tensors)}" if tensors else ""
    where = f"from byte {bad[0] * LEAF_SIZE} on, {len(bad)} x 16 KiB are not as they were written"
    return [Problem("damaged", source.path, f"{member.name} ({member.what}): {where}{named}", tensors)]


def _tensors_in(source: Source, bad: list[int]) -> tuple[str, ...]:
    """The tensors of a ``.safetensors`` with bytes in these leaves."""
    if kind_of(source) != "safetensors":
        return ()
    table = read_table(source)
    ranges = ((row.name, table.data_start + row.start, table.data_start + row.end) for row in table.rows)
    return tuple(name for name, start, end in ranges if start < end and _any_between(bad, start, end))


def _any_between(leaves: list[int], start: int, end: int) -> bool:
    at = bisect_left(leaves, start // LEAF_SIZE)
    return at < len(leaves) and leaves[at] * LEAF_SIZE < end
