"""Parity of a file and the digests of its leaves, in one pass over its bytes and in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.io.memory import allocate
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.residency import is_warm
from fastckpt.io.source import Source
from fastckpt.io.tally import Tally
from fastckpt.io.transfer import MEMORY, Move, Progress, transfer
from fastckpt.layout.records import count_leaves
from fastckpt.seals.parity import Parity

_IN_MEMORY: Final = 16 * 2**20
"""Bytes of parity that are in memory at a time."""


class Encoded(NamedTuple):
    """Parity on its way into a sums file.

    Attributes:
        parity: How much there is of it.
        leaves: The digests of the file, u64 little-endian each.
        source: Where the rows are: MEMORY, or a file descriptor.
        origins: Where each row begins there.
        row_size: Bytes of each.
    """

    parity: Parity
    leaves: memoryview
    source: int
    origins: list[int]
    row_size: int


def of_tally(tally: Tally, parity: Parity, size: int) -> Encoded:
    """What was summed up while the first ``size`` bytes of a file were written. It lies in the memory of the tally."""
    row_size = parity.groups(size) * LEAF_SIZE
    address = _core.address(tally.parity)
    return Encoded(parity, tally.leaves, MEMORY, [address + row * row_size for row in range(parity.rows)], row_size)


@contextmanager
def encoded(
    source: Source, parity: Parity, *, beside: str, threads: int, progress: Progress | None = None
) -> Iterator[Encoded]:
    """The parity of an open file. Where it does not fit into 16 MiB, it is in a file without a name until the end.

    Args:
        source: The file.
        parity: How much.
        beside: A path on the file system that has room for it.
        threads: Worker threads.
        progress: Called now and then with the bytes done so far.

    Raises:
        CheckpointIOError, OutOfSpaceError: A byte cannot be read, or the parity not be kept.
        DamagedError: The file became shorter.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    groups, rows = parity.groups(source.size), parity.rows
    row_size = groups * LEAF_SIZE
    leaves = bytearray(count_leaves(source.size) * LEAF_DIGEST_SIZE)
    at_a_time = max(_IN_MEMORY // (rows * LEAF_SIZE), 1)
    room = allocate(min(groups, at_a_time) * rows * LEAF_SIZE)
    if groups <= at_a_time:
        _encode(source, parity, 0, room, leaves, threads, progress)
        address = _core.address(room) if groups else 0
        yield Encoded(parity, memoryview(leaves), MEMORY, [address + row * row_size for row in range(rows)], row_size)
        return
    directory = os.path.dirname(os.path.realpath(beside))
    import tempfile  # Here, not above: few need it, and it takes time to come.

    with ExitStack() as stack:
        with typed_os_errors(beside, doing="keep the parity"):
            spool = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        for first in range(0, groups, at_a_time):
            count = min(at_a_time, groups - first)
            window = room[: count * rows * LEAF_SIZE]
            done = first * parity.depth * LEAF_SIZE
            told = None if progress is None else _from(done, source.size, progress)
            _encode(source, parity, first, window, leaves, threads, told)
            base, size = _core.address(window), count * LEAF_SIZE
            moves = [Move(base + row * size, row * row_size + first * LEAF_SIZE, size) for row in range(rows)]
            with typed_os_errors(beside, doing="keep the parity"):
                transfer(moves, source=MEMORY, sink=spool.fileno(), threads=threads, leaves=False)
        origins = [row * row_size for row in range(rows)]
        yield Encoded(parity, memoryview(leaves), spool.fileno(), origins, row_size)


def _encode(
    source: Source,
    parity: Parity,
    first: int,
    room: memoryview,
    leaves: bytearray,
    threads: int,
    progress: Progress | None,
) -> None:
    faults = _core.encode_parity(
        source.fd,
        source.size,
        parity.groups(source.size),
        parity.rows,
        first,
        room,
        leaves,
        threads=threads,
        source_direct_fd=-1 if is_warm(source) else source.direct_fd,
        progress=None if progress is None else _from(0, source.size, progress),
    )
    for _, offset, _, errno in faults:
        source.raise_fault(offset, errno)


def _from(done: int, size: int, progress: Progress) -> Progress:
    """Groups that lack a leaf count like others: what is told stays within the file."""
    return lambda count: progress(min(done + count, size))
