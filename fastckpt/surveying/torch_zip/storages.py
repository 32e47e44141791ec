"""Which storages of a damaged torch zip archive are there, and what proves them.

A storage is intact if the CRC-32 of the bytes at its place is the one in the
descriptor behind them or in the central directory. A local header of another
record in its place says that it was never written. Where no checksum is left,
the bytes are there and unproven.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fastckpt.findings import Kind
from fastckpt.io.part import Part
from fastckpt.io.sums import sum_parts
from fastckpt.io.transfer import Move, Progress
from fastckpt.io.unreadable import narrowed, read_there
from fastckpt.layout.zip_layout import CENTRAL_HEADER, END_SIZE, DirectoryEntry, LocalHeader, Place, end_of, places
from fastckpt.surveying.holes import Hole, merge_holes
from fastckpt.surveying.torch_zip.evidence import Archive, Descriptor, descriptor_at, local_header_at
from fastckpt.surveying.wreck import StorageState

_TORCH_RECORD: Final = re.compile(r"[^/]+/(version|byteorder|\.format_version|\.data/serialization_id|data/[^/]+)")
_ZERO_RUN: Final = 16
"""Bytes at the end of a storage, before a descriptor of zeros, that count as a hole."""


@dataclass(slots=True)
class Candidate:
    """A storage, a place where it may be, and what stands there.

    Attributes:
        key: Its key; its record is ``PREFIX/data/KEY``.
        nbytes: Its size.
        place: Where it may be; None if nothing tells.
        header: The local header at the place, whatever record it names.
        descriptor: What stands behind the storage.
        entry: The directory entry of the storage; its CRC-32 is that of the bytes, wherever they are.
        listed: Whether it gives this place.
        named: Whether the local header names this storage.
        in_line: Whether a record behind it stands where this place, and the sizes, put it.
        anchored: Whether one before it does.
        follows: Whether its header is where a record that has its descriptor ends.
    """

    key: str
    nbytes: int
    place: Place | None
    header: LocalHeader | None = None
    descriptor: Descriptor | None = None
    entry: DirectoryEntry | None = None
    listed: bool = False
    named: bool = False
    in_line: bool = False
    anchored: bool = False
    follows: bool = False

    @property
    def is_signed(self) -> bool:
        """Whether its descriptor stands behind it, with signature and sizes."""
        return self.descriptor is not None and self.descriptor.signed

    @property
    def is_witnessed(self) -> bool:
        """Whether its header or its descriptor stands in its place."""
        return self.named or self.is_signed

    @property
    def witnesses(self) -> int:
        """How much ties it to its place: of two that overlap, the one with more is there."""
        return self.named + self.is_signed + self.follows

    def has_checksum(self) -> bool:
        """Whether a CRC-32 is stated where it should be, so that one that does not match means damage."""
        signed = self.descriptor is not None and self.descriptor.signed and self.descriptor.crc
        return bool(signed or self.header_crc or (self.entry is not None and self.entry.crc))

    @property
    def is_disputed(self) -> bool:
        """Whether the descriptor and the directory state different CRC-32s: they are of two saves."""
        if self.descriptor is None or self.entry is None or not self.descriptor.signed:
            return False
        return self.entry.crc != self.descriptor.crc

    @property
    def header_crc(self) -> int:
        """The CRC-32 in the local header, where torch has none and other programs that pack zips do."""
        header = self.header
        if header is None or not self.named or header.size != self.nbytes or header.has_descriptor:
            return 0
        return header.crc

    def own_crcs(self) -> set[int]:
        """The CRC-32s that are stated for this storage and no other. 0 stands for "not computed".

        The directory names the storage whose CRC-32 it has. A descriptor does not: a record that was written to the
        wrong place, or by another save, brings its own along. It counts where the header in front names the storage
        and the directory states nothing else.
        """
        if self.entry is not None and self.entry.crc:
            return {self.entry.crc}
        behind = self.descriptor.crc if self.descriptor is not None and self.named else 0
        return {behind, self.header_crc} - {0}


def look(archive: Archive, key: str, nbytes: int, place: Place | None) -> Candidate:
    """What stands at a place where a storage may be; its bytes are not read."""
    candidate = Candidate(key, nbytes, place)
    if place is None:
        return candidate
    name = archive.name(key)
    candidate.header = local_header_at(archive.source, place.header)
    if candidate.header is not None:
        there = candidate.header.name
        candidate.named = there == name if archive.prefix else there.endswith(name) and there.count("/") == 2
    candidate.descriptor = descriptor_at(archive.source, place.data + nbytes, nbytes, place.descriptor or 16)
    entry = archive.directory.get(name)
    if entry is not None and entry.size == nbytes:
        candidate.entry = entry
        candidate.listed = entry.header == place.header
    return candidate


class _Sum(NamedTuple):
    """CRC-32 of a range, and what of it could not be read."""

    crc: int
    holes: list[Hole]


class Sums:
    """The CRC-32s of ranges of a file, each read once."""

    def __init__(self, archive: Archive, *, threads: int, progress: Progress | None) -> None:
        self._source = archive.source
        self._threads = threads
        self._progress = progress
        self._done = 0
        self._sums: dict[tuple[int, int], _Sum] = {}

    def read(self, candidates: Iterable[Candidate]) -> None:
        """Read the bytes of these, unless that was done. Of those that overlap only one is read."""
        wanted = [c for c in candidates if c.nbytes and c.place is not None and self.of(c) is None]
        chosen = without_overlaps([c for c in wanted if _is_inside(c, self._source)], lambda c: (-c.witnesses,))
        file, begin = self._source.base, self._source.begin
        moves = [Move(begin + c.place.data, 0, c.nbytes) for c in chosen if c.place is not None]
        if not moves:
            return
        done, progress = self._done, self._progress
        moved = sum_parts(
            file,
            moves,
            threads=self._threads,
            progress=None if progress is None else (lambda count: progress(done + count)),
        )
        self._done += sum(move.size for move in moves)
        holes: dict[int, list[Hole]] = {}
        for fault in moved.faults:
            kind = Kind.UNREADABLE if fault.errno else Kind.MISSING
            for part in narrowed(file, moves[fault.move].source, fault):
                holes.setdefault(fault.move, []).append(Hole(part.offset, part.offset + part.size, kind))
        for number, (move, crc) in enumerate(zip(moves, moved.crcs, strict=True)):
            self._sums[move.source - begin, move.size] = _Sum(crc, holes.get(number, []))

    def of(self, candidate: Candidate) -> _Sum | None:
        """The sum of a candidate; None if it was not read."""
        return self._sums.get((candidate.place.data, candidate.nbytes)) if candidate.place is not None else None

    def prove(self, candidate: Candidate) -> bool:
        """Whether the bytes at the place have the CRC-32 that the file states for this storage."""
        found = self.of(candidate)
        return found is not None and not found.holes and found.crc in candidate.own_crcs()

    def dispute(self, candidate: Candidate) -> bool:
        """Whether the bytes are as what stands behind them says, and not as the directory says."""
        found = self.of(candidate)
        if found is None or found.holes or candidate.descriptor is None or found.crc in candidate.own_crcs():
            return False
        return candidate.is_signed and found.crc == candidate.descriptor.crc != 0


def judge(archive: Archive, candidates: Sequence[Candidate], sums: Sums) -> list[StorageState]:
    """The state of every storage, given one place for each."""
    placed = sorted(
        (candidate for candidate in candidates if candidate.place is not None),
        key=lambda candidate: candidate.place.header if candidate.place is not None else 0,
    )
    _find_followers(placed)
    size = archive.source.size
    sums.read(candidates)
    _find_line(archive, placed, sums)
    inside = [c for c in candidates if c.nbytes and _is_inside(c, archive.source)]
    alone = {id(c) for c in without_overlaps(inside, lambda c: (not sums.prove(c), -c.witnesses))}
    standing = {c.key: c.place.header for c in candidates if c.named and c.place is not None}
    copies: dict[tuple[int, int], str] = {}
    for candidate in candidates:
        found = sums.of(candidate)
        if found is not None and sums.prove(candidate):
            copies.setdefault((found.crc, candidate.nbytes), candidate.key)
    states = []
    for candidate in candidates:
        place, found = candidate.place, sums.of(candidate)
        state = StorageState(candidate.nbytes, place.data if place is not None else None)
        states.append(state)
        if not candidate.nbytes:
            state.proven = True
        elif place is None:
            state.lose("its record is nowhere to be found")
        elif place.data + archive.source.begin < 0:
            state.lose("the file begins behind its first byte")
        elif not _is_inside(candidate, archive.source):
            _judge_cut(candidate, place, state, size)
        elif id(candidate) not in alone or found is None:
            state.lose("its record overlaps another one")
        elif found.holes:
            state.holes, state.reason = merge_holes(found.holes), "parts of it cannot be read"
        elif sums.prove(candidate):
            state.proven = True
        elif sums.dispute(candidate):
            _judge_disputed(candidate, state, copies)
        elif _is_replaced(archive, candidate, place, standing):
            state.lose("the save was interrupted before it: another record is in its place")
        else:
            _judge_unproven(archive, candidate, place, state)
    return states


def _judge_disputed(candidate: Candidate, state: StorageState, copies: Mapping[tuple[int, int], str]) -> None:
    """A storage whose bytes are as what stands behind them says: that is no proof that they are its own."""
    found = candidate.descriptor.crc if candidate.descriptor is not None else 0
    if candidate.entry is not None and candidate.entry.crc:
        call_misplaced(state)
    elif copies.get((found, candidate.nbytes), candidate.key) != candidate.key:
        state.lose(f"a copy of data/{copies[found, candidate.nbytes]} is in its place")
    else:
        state.reason = "its header is damaged: nothing says that the bytes in its place are its own"


def call_misplaced(state: StorageState) -> None:
    """Note that a storage's bytes are whole, and others than the ones that belong in their place."""
    state.holes = [Hole(0, state.nbytes, Kind.ROTTED, located=False)]
    state.reason = (
        "its bytes are whole, but not those of which the file has the CRC-32: they are of another save, or of another "
        "tensor"
    )


def _is_replaced(archive: Archive, candidate: Candidate, place: Place, standing: Mapping[str, int]) -> bool:
    """Whether the header of another record stands here, and nothing says that this record does.

    A name that is only a damaged form of the own one is no other record: one with another top directory, or that of
    a storage which has its header elsewhere (``standing``: the headers that name their storage, by key).
    """
    header = candidate.header
    if header is None or candidate.named or candidate.in_line or candidate.is_signed or candidate.listed:
        return False
    if not _TORCH_RECORD.fullmatch(header.name) or header.name.endswith(f"/data/{candidate.key}"):
        return False
    other = archive.key_of(header.name)
    return other is None or standing.get(other, place.header) == place.header


def _find_followers(placed: Sequence[Candidate]) -> None:
    """Tell which candidates, in the order of their places, begin where a record that has its descriptor ends."""
    ends = {end_of(c.place, c.nbytes) for c in placed if c.is_signed and c.place is not None}
    for candidate in placed:
        candidate.follows = candidate.place is not None and candidate.place.header in ends


def _find_line(archive: Archive, placed: Sequence[Candidate], sums: Sums) -> None:
    """Tell which candidates stand in line: behind a record that is whole, or before one in its place."""
    source, prefix = archive.source, archive.prefix
    following = False
    # A file of exactly the length that its layout gives has lost or gained no byte.
    whole = bool(placed) and expected_size(placed, prefix) == source.size
    anchored = False
    for candidate in placed:
        candidate.anchored = anchored
        # An empty record has no descriptor: where its header ends, the next one begins.
        ends_there = candidate.is_signed or sums.prove(candidate) if candidate.nbytes else candidate.named
        anchored = ends_there or (whole and (anchored or candidate.named))
    for candidate in reversed(placed):
        assert candidate.place is not None
        if not following:
            after = local_header_at(source, end_of(candidate.place, candidate.nbytes))
            following = after is not None and (not prefix or after.name.startswith(prefix + "/"))
        candidate.in_line = following
        following = following or candidate.is_witnessed


def expected_size(placed: Sequence[Candidate], prefix: str) -> int:
    """The length of a file that torch wrote, given its storages: two small records and the directory follow them."""
    last = placed[-1]
    assert last.place is not None
    tail = [(f"{prefix}/version", 2), (f"{prefix}/.data/serialization_id", 40)]
    at = list(places(end_of(last.place, last.nbytes), tail))[-1].data + 40 + 16
    small = ("data.pkl", ".format_version", ".storage_alignment", "byteorder", "version", ".data/serialization_id")
    names = [*small, *(f"data/{candidate.key}" for candidate in placed)]
    return at + sum(CENTRAL_HEADER.size + len(f"{prefix}/{name}".encode()) for name in names) + END_SIZE


def _is_inside(candidate: Candidate, source: Part) -> bool:
    place = candidate.place
    return place is not None and place.data + source.begin >= 0 and place.data + candidate.nbytes <= source.size


def without_overlaps(candidates: Sequence[Candidate], rank: Callable[[Candidate], tuple[int, ...]]) -> list[Candidate]:
    """Leave out ranges that reach into another one, so that no byte counts twice; lower ranks come first."""
    begins: list[int] = []
    ends: list[int] = []
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (rank(c), c.place or ())):
        assert candidate.place is not None
        begin = candidate.place.data
        end = begin + candidate.nbytes
        at = bisect_left(begins, begin)
        if (at and ends[at - 1] > begin) or (at < len(begins) and begins[at] < end):
            continue
        begins.insert(at, begin)
        ends.insert(at, end)
        kept.append(candidate)
    return kept


def _judge_cut(candidate: Candidate, place: Place, state: StorageState, size: int) -> None:
    """A storage that ends beyond the file."""
    there = size - place.data
    if there <= 0 or candidate.named:
        state.cut(there)
    else:
        state.lose("another record, or none, is in its place")


def _judge_unproven(archive: Archive, candidate: Candidate, place: Place, state: StorageState) -> None:
    """A storage whose bytes are in the file without a checksum that matches."""
    descriptor = candidate.descriptor
    placed = candidate.named or candidate.listed or candidate.in_line
    if candidate.has_checksum():
        state.holes = [Hole(0, state.nbytes, Kind.ROTTED, located=False)]
        state.reason = "its CRC-32 does not match"
    elif (
        (placed or candidate.anchored)
        and descriptor is not None
        and not any(descriptor.raw)
        and (run := _zero_run(archive, place.data, candidate.nbytes)) >= _ZERO_RUN
    ):
        if run == state.nbytes:
            state.lose("it was never written: it reads as zeros, as does its descriptor")
        else:
            state.holes = [Hole(state.nbytes - run, state.nbytes, Kind.TORN)]
            state.reason = f"its last {run} bytes read as zeros, as does its descriptor: a hole, or never written"
    elif placed:
        computed = descriptor is not None and descriptor.signed
        state.reason = "its CRC-32 was not computed" if computed else "its descriptor, which has its CRC-32, is lost"
    elif candidate.anchored:
        state.reason = "header and descriptor are lost: only the records before it say that it should be here"
    else:
        state.lose("neither its header nor its descriptor is there, nor any record after it")


def _zero_run(archive: Archive, start: int, size: int) -> int:
    """How many bytes at the end of a range are zero."""
    at = size
    while at:
        step = min(at, 2**20)
        window = read_there(archive.source, start + at - step, step)
        kept = len(window.rstrip(b"\0"))
        if kept or len(window) < step:
            return size - (at - step + kept)
        at -= step
    return size
