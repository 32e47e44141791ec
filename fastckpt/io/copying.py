"""Copying storages out of several files into one, in one pass each, with their CRC-32s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.io.commit import Commit, translate_os_error
from fastckpt.io.transfer import Move, Progress, transfer


class FilePlace(NamedTuple):
    """Where the bytes of a storage begin: a file descriptor and an offset."""

    fd: int
    offset: int


def copy_storages(
    sink: Commit,
    origins: Sequence[FilePlace],
    places: Sequence[tuple[int, int]],
    *,
    threads: int,
    progress: Progress | None,
) -> list[int]:
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
        report = None if progress is None else (lambda count, base=done: progress(base + count))
        try:
            moved = transfer(
                [Move(origins[n].offset, places[n][0], places[n][1]) for n in numbers],
                source=fd,
                sink=sink.fd,
                sink_direct=-1,
                threads=threads,
                leaves=False,
                crcs=True,
                progress=report,
            )
        except CheckpointIOError:
            raise
        except OSError as error:
            raise translate_os_error(error, sink.path, doing="write the file") from error
        if moved.faults:
            raise DamagedError("a file became shorter or unreadable while it was salvaged; nothing was written")
        for number, crc in zip(numbers, moved.crcs, strict=True):
            crcs[number] = crc
        done += sum(places[n][1] for n in numbers)
    return crcs
