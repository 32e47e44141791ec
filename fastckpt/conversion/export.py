"""Storages of a ``.fckpt`` written into another file, verified on the way.

Whatever the other file's format is, it is literals (its headers) and whole
storages at given offsets. Large records stream from file to file; packs pass
through memory one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE
from fastckpt.errors import DamagedError
from fastckpt.fckpt.bad_ranges import raise_damage
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, read_chunk, read_targets
from fastckpt.fckpt.source_section import Segment
from fastckpt.foreign.byte_order import turn_round
from fastckpt.io.commit import Commit
from fastckpt.io.how import How
from fastckpt.io.memory import allocate
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, Move, transfer
from fastckpt.layout.records import Record

Literals = Iterable[tuple[int, bytes]]
"""``(offset in the written file, bytes)`` of what is not tensor data."""


def export_file(
    file: CheckpointFile,
    destination: str | os.PathLike[str],
    *,
    size: int,
    literals: Literals,
    segments: Sequence[Segment],
    how: How,
) -> None:
    """Write ``size`` bytes to ``destination``: ``literals``, and the storages of ``segments``.

    Raises:
        DamagedError: A storage is damaged; nothing is committed.
        OutOfSpaceError, CheckpointIOError: The destination is untouched.
    """
    with Commit(destination, durable=how.durable, reserve=size) as sink:
        sink.preallocate(size)
        for offset, data in literals:
            sink.write(offset, data)
        export_storages(file, sink, segments, how)
        sink.finish(size)


def export_storages(file: CheckpointFile, sink: Commit, segments: Sequence[Segment], how: How) -> None:
    """Write storages to their places in ``sink``.

    Raises:
        DamagedError: A storage is damaged.
        OutOfSpaceError, CheckpointIOError: They cannot be written.
    """
    by_record: dict[int, list[Segment]] = {}
    for segment in segments:
        by_record.setdefault(file.manifest.storages[segment.storage].record, []).append(segment)
    targets = []
    done = 0
    for number, group in sorted(by_record.items()):
        record = file.records[number]
        if len(record.storages) == 1 and len(group) == 1 and group[0].unit == 1:
            targets.append(Target(record, 0, record.raw_size, group[0].offset))
        else:
            _export_from_memory(file, record, group, sink, threads=how.threads)
            done += record.raw_size
    tell = how.progress
    report = None if tell is None else lambda count: tell(done + count)
    reading = Reading(how.threads, progress=report, sink=sink.fd, sink_direct=sink.direct_fd)
    with typed_os_errors(sink.path):
        raise_damage(file.source, read_targets(file.source, targets, reading))
    file.source.require_unchanged(next_step="convert it again")


def _export_from_memory(
    file: CheckpointFile, record: Record, segments: Sequence[Segment], sink: Commit, *, threads: int
) -> None:
    pack = allocate(record.raw_size)
    base = _core.address(pack)
    target = Target(record, 0, record.raw_size, base)
    raise_damage(file.source, read_targets(file.source, [target], Reading(threads)))
    places = file.manifest.storages
    for segment in segments:
        start = places[segment.storage].offset
        turn_round(pack[start : start + segment.size], segment.unit)
    moves = [Move(base + places[s.storage].offset, s.offset, s.size) for s in segments]
    with typed_os_errors(sink.path):
        transfer(moves, source=MEMORY, sink=sink.fd, threads=threads, leaves=False)


def confirm_export(
    file: CheckpointFile, destination: str | os.PathLike[str], *, literals: Literals, segments: Sequence[Segment]
) -> None:
    """Read a written file back from disk and compare every byte with what it was made of.

    Raises:
        DamagedError: They differ.
    """
    with Source(destination) as written:
        written.drop_cache()
        offset = first_difference(file, written, literals=literals, segments=segments)
    if offset is not None:
        raise DamagedError(
            "what was read back from disk is not what was written",
            path=written.path,
            offset=offset,
            next_step="check the disk; the source was kept",
        )


def first_difference(
    file: CheckpointFile, written: Source, *, literals: Literals, segments: Sequence[Segment]
) -> int | None:
    """Offset of a piece of ``written`` that is not as these literals and storages have it; None if all are.

    Raises:
        DamagedError: A storage of ``file`` is damaged, or ``written`` is too short.
    """
    for offset, data in literals:
        if written.read(offset, len(data)) != data:
            return offset
    # Storages of a pack follow one another: the chunk in hand mostly serves the next one too.
    held: tuple[int, int] | None = None
    raw_bytes: bytes | bytearray = b""
    for segment in segments:
        place = file.manifest.storages[segment.storage]
        record = file.records[place.record]
        at = segment.offset
        for chunk in range(place.offset // CHUNK_SIZE, -(-(place.offset + place.nbytes) // CHUNK_SIZE)):
            if held != (record.number, chunk):
                raw_bytes = read_chunk(file.source, record, chunk)
                held = record.number, chunk
            raw = record.chunk_raw(chunk)
            begin, end = max(raw.offset, place.offset), min(raw.end, place.offset + place.nbytes)
            data = bytes(raw_bytes[begin - raw.offset : end - raw.offset])
            if segment.unit > 1:
                turned = bytearray(data)
                turn_round(memoryview(turned), segment.unit)
                data = bytes(turned)
            if written.read(at, len(data)) != data:
                return at
            at += len(data)
    return None
