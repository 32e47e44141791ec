"""Reading payloads: raw bytes of records into memory, every leaf verified.

Records stored as they are take the native path, many at once: read and hash
in one pass, or hash where they are mapped; so do whole chunks of planes. Other
encoded chunks, and those that are bad, are read, decoded and hashed one by one
on Python threads (the codecs release the GIL). All end in the same comparison
of leaf digests and the same list of bad ranges.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import xxhash

from fastckpt import _core
from fastckpt.codec.registry import Codec, codec_for_reading
from fastckpt.constants import CHUNK_SIZE, CODEC_NONE, CODEC_PLANES, LEAF_SIZE, LEAVES_PER_CHUNK
from fastckpt.errors import CheckpointIOError, DamagedError, UnsupportedVersionError, UsageError
from fastckpt.fckpt.bad_ranges import BadRange, differing_runs
from fastckpt.findings import Kind
from fastckpt.io.anew import until_right
from fastckpt.io.memory import view
from fastckpt.io.pool import map_in_order
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, Progress, transfer
from fastckpt.layout.blocks import align
from fastckpt.layout.places import StoragePlace
from fastckpt.layout.records import Record, count_leaves, raw_chunk_digest


class Target(NamedTuple):
    """Raw bytes ``[start, start + size)`` of a record, wanted somewhere.

    ``start`` is a multiple of LEAF_SIZE; the range ends on one too or at the
    record's end. ``place`` is a memory address, or an offset in the file that
    `Reading.sink` names; with None the bytes are only verified.
    """

    record: Record
    start: int
    size: int
    place: int | None


def covering_targets(record: Record, places: Sequence[StoragePlace], address: int | None) -> list[Target]:
    """The leaf-aligned runs of a record that cover these storages; ``address`` is where raw byte 0 goes."""
    if len(places) == len(record.storages):
        return [Target(record, 0, record.raw_size, address)]
    targets: list[Target] = []
    for place in sorted(places, key=lambda p: p.offset):
        if not place.nbytes:
            continue
        start = place.offset // LEAF_SIZE * LEAF_SIZE
        end = min(align(place.offset + place.nbytes, LEAF_SIZE), record.raw_size)
        if targets and start <= targets[-1].start + targets[-1].size:
            start = targets.pop().start
        targets.append(Target(record, start, end - start, None if address is None else address + start))
    return targets


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read.

    Attributes:
        threads: Worker threads.
        verify: Whether digests are compared.
        progress: Called with the bytes done so far.
        mapped_at: The address at which the whole file is mapped, if it is.
        release: Give back the pages of that map, a shared one, that were verified.
        sink: MEMORY, or the file descriptor that the raw bytes are written to.
        sink_direct: The same file opened with O_DIRECT, or -1.
    """

    threads: int
    verify: bool = True
    progress: Progress | None = None
    mapped_at: int | None = None
    release: bool = False
    sink: int = MEMORY
    sink_direct: int = -1


def read_targets(source: Source, targets: Sequence[Target], reading: Reading) -> list[BadRange]:
    """Read and verify ``targets``; returns everything that is not as written.

    The bytes of a bad range may have been written to memory all the same:
    the caller must not hand them out.

    Raises:
        UnsupportedVersionError: A chunk has an unknown codec.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    if source.is_closed:
        # To the engine, -1 means memory: a closed file must not get there.
        raise UsageError("the checkpoint is closed", path=source.path)
    bad: Sequence[BadRange] = _read_once(source, targets, reading)
    if reading.verify:
        again = replace(reading, progress=None)
        bad = until_right(source, bad, lambda bad: _read_once(source, list(_targets_of(targets, bad)), again))
    return sorted(bad, key=lambda b: (b.record.number, b.leaf))


def _targets_of(targets: Sequence[Target], bad: Sequence[BadRange]) -> Iterator[Target]:
    """What of the targets is bad."""
    by_record: dict[int, list[Target]] = {}
    for target in targets:
        by_record.setdefault(target.record.number, []).append(target)
    for found in bad:
        for record, start, size, place in by_record[found.record.number]:
            first = max(start, found.leaf * LEAF_SIZE)
            end = min(start + size, (found.leaf + found.leaves) * LEAF_SIZE)
            if first < end:
                yield Target(record, first, end - first, None if place is None else place + first - start)


def _read_once(source: Source, targets: Sequence[Target], reading: Reading) -> list[BadRange]:
    raw = [target for target in targets if target.record.is_raw and target.size]
    encoded = [target for target in targets if not target.record.is_raw and target.size]
    bad = []
    done = 0
    for group in (
        [t for t in raw if t.place is not None],
        [t for t in raw if t.place is None],
    ):
        if group:
            bad += _read_raw(source, group, reading, _shifted(reading.progress, done))
            done += sum(target.size for target in group)
    if encoded:
        bad += _read_encoded(source, encoded, reading, _shifted(reading.progress, done))
    return bad


def _shifted(progress: Progress | None, done: int) -> Progress | None:
    return None if progress is None else lambda count: progress(done + count)


def _read_raw(source: Source, targets: Sequence[Target], reading: Reading, progress: Progress | None) -> list[BadRange]:
    only_verify = targets[0].place is None
    mapped = reading.mapped_at is not None and only_verify
    origin = reading.mapped_at if mapped and reading.mapped_at is not None else 0
    moves = (Move(origin + t.record.payload.offset + t.start, t.place or 0, t.size) for t in targets)
    if mapped:
        moved = transfer(
            moves,
            source=MEMORY,
            sink=NOWHERE,
            threads=reading.threads,
            leaves=reading.verify,
            mapped=True,
            release=reading.release,
            progress=progress,
        )
    else:
        moved = source.transfer(
            moves,
            sink=NOWHERE if only_verify else reading.sink,
            sink_direct=-1 if only_verify else reading.sink_direct,
            threads=reading.threads,
            leaves=reading.verify,
            progress=progress,
        )
    bad = []
    unreadable: dict[int, set[int]] = {}
    for fault in moved.faults:
        target = targets[fault.move]
        first = (target.start + fault.offset) // LEAF_SIZE
        count = -(-(target.start + fault.offset + fault.size) // LEAF_SIZE) - first
        errno = fault.errno
        if mapped:
            # A map only speeds things up: what becomes of bytes that it does not have, plain reading says.
            start = target.record.payload.offset + target.start + fault.offset
            errno = source.errno_of_map(start, min(fault.size, LEAF_SIZE))
        kind = Kind.UNREADABLE if errno else Kind.MISSING
        bad += [BadRange(target.record, leaf, run, kind, errno) for leaf, run in _by_chunk(first, count)]
        unreadable.setdefault(fault.move, set()).update(range(first, first + count))
    if reading.verify:
        at = 0
        for number, target in enumerate(targets):
            first = target.start // LEAF_SIZE
            count = count_leaves(target.size)
            actual = moved.leaves[at * 8 : (at + count) * 8]
            expected = target.record.leaves[first * 8 : (first + count) * 8]
            skip = unreadable.get(number, set())
            bad += [
                BadRange(target.record, first + leaf, run, kind)
                for leaf, run, kind in differing_runs(actual, expected)
                if first + leaf not in skip
            ]
            at += count
    return bad


def _by_chunk(first: int, count: int) -> Iterator[tuple[int, int]]:
    """Cut the leaves ``[first, first + count)`` where chunks meet."""
    while count:
        run = min(count, LEAVES_PER_CHUNK - first % LEAVES_PER_CHUNK)
        yield first, run
        first, count = first + run, count - run


class EncodedPiece(NamedTuple):
    """The part of one chunk that a target wants."""

    target: Target
    chunk: int
    start: int
    end: int


def encoded_pieces(target: Target) -> Iterator[EncodedPiece]:
    """A target, chunk by chunk."""
    stop = target.start + target.size
    for chunk in range(target.start // CHUNK_SIZE, -(-stop // CHUNK_SIZE)):
        raw = target.record.chunk_raw(chunk)
        yield EncodedPiece(target, chunk, max(raw.offset, target.start), min(raw.end, stop))


def _read_encoded(
    source: Source, targets: Sequence[Target], reading: Reading, progress: Progress | None
) -> list[BadRange]:
    pieces = [piece for target in targets for piece in encoded_pieces(target)]
    planes: list[EncodedPiece] = []
    rest: list[EncodedPiece] = []
    for piece in pieces:
        (planes if not source.far and _is_for_the_core(piece, reading) else rest).append(piece)
    bad, failed = _read_planes(source, planes, reading, progress) if planes else ([], [])
    rest += failed
    done = _raw_bytes(pieces) - _raw_bytes(rest)
    with source.ahead([p.target.record.chunk_extent(p.chunk) for p in rest], threads=reading.threads):
        results = map_in_order(
            lambda piece: read_piece(source, piece, reading), rest, threads=reading.threads, stop=source.abandon_reads
        )
        for piece, found in zip(rest, results, strict=True):
            bad += found
            done += piece.end - piece.start
            if progress is not None:
                progress(done)
    return bad


def _raw_bytes(pieces: Sequence[EncodedPiece]) -> int:
    return sum(piece.end - piece.start for piece in pieces)


def _is_for_the_core(piece: EncodedPiece, reading: Reading) -> bool:
    """Whether the native core reads a piece: a whole chunk of planes, to memory or nowhere."""
    record, chunk = piece.target.record, piece.chunk
    return (
        record.chunks[chunk].codec == CODEC_PLANES
        and piece.end - piece.start == record.chunk_raw(chunk).size
        and (piece.target.place is None or reading.sink == MEMORY)
    )


def _read_planes(
    source: Source, pieces: Sequence[EncodedPiece], reading: Reading, progress: Progress | None
) -> tuple[list[BadRange], list[EncodedPiece]]:
    """Read and verify pieces in the native core; also those that it could not bring, for whatever reason."""
    rows = array("Q")
    leaf_count = 0
    for target, chunk, start, end in pieces:
        extent, place = target.record.chunk_extent(chunk), target.place
        digest = target.record.chunks[chunk].stored_digest
        rows.extend((*extent, digest, 0 if place is None else place + start - target.start, end - start))
        leaf_count += count_leaves(end - start)
    leaves = memoryview(bytearray(8 * leaf_count))
    good = _core.planes_read(
        source.fd,
        rows,
        leaves if reading.verify else None,
        threads=reading.threads,
        direct_fd=source.direct_fd,
        progress=progress,
    )
    bad: list[BadRange] = []
    at = 0
    for piece, is_good in zip(pieces, good, strict=True):
        record, chunk = piece.target.record, piece.chunk
        expected = record.chunk_leaves(chunk)
        actual = leaves[at : at + len(expected)]
        at += len(expected)
        if is_good and reading.verify:
            first = chunk * LEAVES_PER_CHUNK
            bad += [BadRange(record, first + leaf, run, kind) for leaf, run, kind in differing_runs(actual, expected)]
    return bad, [piece for piece, is_good in zip(pieces, good, strict=True) if not is_good]


def read_piece(source: Source, piece: EncodedPiece, reading: Reading) -> list[BadRange]:
    """Read, decode and verify one piece; returns what of it is not as written."""
    record, chunk = piece.target.record, piece.chunk
    first = chunk * LEAVES_PER_CHUNK
    leaves = record.chunk_leaves(chunk)

    def all_bad(kind: Kind, errno: int = 0) -> list[BadRange]:
        return [BadRange(record, first, len(leaves) // 8, kind, errno, whole=True)]

    begin = piece.start - chunk * CHUNK_SIZE
    size = piece.end - piece.start
    place = None if piece.target.place is None else piece.target.place + piece.start - piece.target.start
    # A whole chunk that goes to memory is decoded right there.
    there = place is not None and reading.sink == MEMORY and size == record.chunk_raw(chunk).size
    raw: bytes | bytearray | memoryview
    try:
        if there and place is not None:
            raw = view(place, size)
            read_chunk_into(source, record, chunk, raw, verify=reading.verify)
        else:
            raw = read_chunk(source, record, chunk, verify=reading.verify)
    except CheckpointIOError as error:
        return all_bad(Kind.UNREADABLE, error.errno or 0)
    except DamagedError:
        return all_bad(_why_bad(source, *record.chunk_extent(chunk)))
    if place is not None and not there:
        part = memoryview(raw)[begin : begin + size]
        move = Move(_core.address(part), place, len(part))
        transfer([move], source=MEMORY, sink=reading.sink, threads=1, leaves=False)
    if not reading.verify:
        return []
    # Only the leaves that are wanted: others of a chunk that is stored as it is may be bad.
    begin = piece.start // LEAF_SIZE - first
    end = -(-piece.end // LEAF_SIZE) - first
    actual = memoryview(_core.leaf_digests(raw))[begin * 8 : end * 8]
    return [
        BadRange(record, first + begin + leaf, run, kind)
        for leaf, run, kind in differing_runs(actual, leaves[begin * 8 : end * 8])
    ]


def _why_bad(source: Source, offset: int, size: int) -> Kind:
    """Whether stored bytes that are not as written were cut off, never written, or changed."""
    if offset + size > source.size:
        return Kind.MISSING
    return Kind.ROTTED if any(source.read(offset, size)) else Kind.TORN


def read_chunk(source: Source, record: Record, chunk: int, *, verify: bool = True) -> bytes | bytearray:
    """The raw bytes of one chunk, decoded; its stored digest is checked, its leaves are not.

    Raises:
        DamagedError: The stored bytes are missing, changed, or do not decode.
        UnsupportedVersionError: Unknown codec.
        UsageError: The codec's package is not installed.
        CheckpointIOError: They cannot be read.
    """
    stored, codec = _read_stored(source, record, chunk, verify=verify)
    return stored if codec is None else codec.decode(stored, record.chunk_raw(chunk).size)


def read_chunk_into(source: Source, record: Record, chunk: int, raw: memoryview, *, verify: bool = True) -> None:
    """Fill ``raw`` with the raw bytes of one chunk. Raises what `read_chunk` does; ``raw`` means nothing then."""
    stored, codec = _read_stored(source, record, chunk, verify=verify)
    if codec is None:
        raw[:] = stored
    else:
        codec.decode_into(stored, raw)


def _read_stored(source: Source, record: Record, chunk: int, *, verify: bool) -> tuple[bytes, Codec | None]:
    """The stored bytes of a chunk, as their digest says, and what decodes them."""
    row = record.chunks[chunk]
    extent = record.chunk_extent(chunk)
    stored = source.read(*extent)
    if row.codec == CODEC_NONE:
        return stored, None
    try:
        codec = codec_for_reading(row.codec)
    except (UnsupportedVersionError, UsageError) as error:
        error.path, error.offset, error.chunk = source.path, extent.offset, chunk
        raise
    if verify:
        digest = xxhash.xxh3_64_intdigest(stored)
        if digest != row.stored_digest:
            raise DamagedError(
                "the stored bytes of a chunk are damaged",
                path=source.path,
                offset=extent.offset,
                chunk=chunk,
                expected=f"{row.stored_digest:016x}",
                actual=f"{digest:016x}",
            )
    return stored, codec


def check_chunk_digests(record: Record) -> list[int]:
    """Chunks stored as they are whose digest contradicts the leaf digests beside it."""
    return [
        number
        for number, row in enumerate(record.chunks)
        if row.codec == CODEC_NONE and row.stored_digest != raw_chunk_digest(record.chunk_leaves(number))
    ]
