"""Copying storages out of several files into one, in one pass each, with their CRC-32s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.io.commit import Commit
from fastckpt.io.how import How
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.transfer import NOWHERE, Move, transfer


class FilePlace(NamedTuple):
    """Where the bytes of a storage begin: a file descriptor and an offset."""

    fd: int
    offset: int


def copy_storages(sink: Commit, origins: Sequence[FilePlace], places: Sequence[tuple[int, int]], how: How) -> list[int]:
    """Copy bytes from ``origins`` to ``places`` (offset in ``sink`` and size); returns the CRC-32 of each.

    Raises:
        OutOfSpaceError, CheckpointIOError: They cannot be written.
        DamagedError: A source became shorter or unreadable.
    """
    crcs = [0] * len(origins)
    by_fd: dict[int, list[int]] = {}
    for number, ((_, size), origin) in enumerate(zip(places, origins, strict=True)):
        if size:
            by_fd.setdefault(origin.fd, []).append(number)
    done = 0
    for fd, numbers in by_fd.items():
        report = None if how.progress is None else (lambda count, base=done, tell=how.progress: tell(base + count))
        with typed_os_errors(sink.path, doing="write the file"):
            moved = transfer(
                [Move(origins[n].offset, places[n][0], places[n][1]) for n in numbers],
                source=fd,
                sink=sink.fd,
                sink_direct=-1,
                threads=how.threads,
                leaves=False,
                crcs=True,
                progress=report,
            )
        if moved.faults:
            raise DamagedError("a file became shorter or unreadable while it was read; nothing was written")
        for number, crc in zip(numbers, moved.crcs, strict=True):
            crcs[number] = crc
        done += sum(places[n][1] for n in numbers)
    return crcs


def sum_written(sink: Commit, places: Sequence[tuple[int, int]], *, threads: int) -> list[int]:
    """The CRC-32s of what was written to ``places`` (offset in ``sink`` and size).

    Raises:
        CheckpointIOError: It cannot be read back.
    """
    moves = [Move(offset, 0, size) for offset, size in places]
    moved = transfer(moves, source=sink.fd, sink=NOWHERE, threads=threads, leaves=False, crcs=True)
    if moved.faults:
        raise CheckpointIOError(
            "what was written cannot be read back", path=sink.path, next_step="look at the disk: dmesg"
        )
    return list(moved.crcs)
