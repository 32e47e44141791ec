"""Which storages of a damaged torch zip archive are there, and what proves them.

A storage is intact if the CRC-32 of the bytes at its place is the one in the
descriptor behind them or in the central directory. A local header of another
record in its place says that it was never written. Where no checksum is left,
the bytes are there and unproven.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fastckpt.findings import Kind
from fastckpt.io.source import Source
from fastckpt.io.transfer import NOWHERE, Move, Progress, transfer
from fastckpt.salvaging.wreck import Hole, StorageState, merge_holes
from fastckpt.salvaging.zip_evidence import Descriptor, descriptor_at, local_header_at, read_there
from fastckpt.salvaging.zip_layout import CENTRAL_HEADER, END_SIZE, DirectoryEntry, LocalHeader, Place, end_of, places

_HAS_DESCRIPTOR: Final = 0x8
_TORCH_RECORD: Final = re.compile(r"[^/]+/(version|byteorder|\.format_version|\.data/serialization_id|data/[^/]+)")
_ZERO_RUN: Final = 16
"""Bytes at the end of a storage, before a descriptor of zeros, that count as a hole."""


@dataclass(slots=True)
class Candidate:
    """A storage and the place where it should be.

    Attributes:
        key: Its key; its record is ``PREFIX/data/KEY``.
        nbytes: Its size.
        place: Where it should be; None if nothing tells.
    """

    key: str
    nbytes: int
    place: Place | None
    header: LocalHeader | None = None
    descriptor: Descriptor | None = None
    entry: DirectoryEntry | None = None
    named: bool = False
    in_line: bool = False
    anchored: bool = False

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
        usual = header is not None and self.named and header.size == self.nbytes and not header.flags & _HAS_DESCRIPTOR
        return header.crc if header is not None and usual else 0

    @property
    def is_witnessed(self) -> bool:
        """Whether its header or its descriptor stands in its place."""
        return self.named or (self.descriptor is not None and self.descriptor.signed)

    @property
    def is_replaced(self) -> bool:
        """Whether the header of another record stands here, and nothing says that this record does."""
        if self.header is None or self.named or self.in_line:
            return False
        signed = self.descriptor is not None and self.descriptor.signed
        return not signed and self.entry is None and _TORCH_RECORD.fullmatch(self.header.name) is not None

    def stated_crcs(self) -> set[int]:
        """The CRC-32s that the file states for it. 0 stands for "not computed"."""
        crcs = {witness.crc for witness in (self.descriptor, self.entry) if witness is not None}
        return (crcs | {self.header_crc}) - {0}


def judge(
    source: Source,
    prefix: str,
    candidates: Sequence[Candidate],
    directory: dict[str, DirectoryEntry],
    *,
    threads: int,
    progress: Progress | None,
) -> list[StorageState]:
    """The state of every candidate; all bytes are read once."""
    for candidate in candidates:
        _gather(source, prefix, candidate, directory)
    _find_line(source, prefix, candidates)
    states = [StorageState(c.nbytes, c.place.data if c.place is not None else None) for c in candidates]
    jobs = [n for n, c in enumerate(candidates) if c.place is not None and c.nbytes and _is_inside(c, source.size)]
    jobs = _without_overlaps(candidates, states, jobs)
    moved = transfer(
        (Move(states[n].offset or 0, 0, states[n].nbytes) for n in jobs),
        source=source.fd,
        source_direct=source.direct_fd,
        sink=NOWHERE,
        threads=threads,
        leaves=False,
        crcs=True,
        progress=progress,
    )
    faults: dict[int, list[Hole]] = {}
    for fault in moved.faults:
        kind = Kind.UNREADABLE if fault.errno else Kind.MISSING
        faults.setdefault(jobs[fault.move], []).append(Hole(fault.offset, fault.offset + fault.size, kind))
    crcs = dict(zip(jobs, moved.crcs, strict=True))
    for number, (candidate, state) in enumerate(zip(candidates, states, strict=True)):
        if not candidate.nbytes:
            state.proven = True
        elif state.reason:
            continue
        elif candidate.place is None:
            state.lose("its record is nowhere to be found")
        elif number in faults:
            state.holes, state.reason = merge_holes(faults[number]), "parts of it cannot be read"
        elif number not in crcs:
            _judge_cut(candidate, state, source.size)
        elif crcs[number] in candidate.stated_crcs():
            state.proven = True
        else:
            _judge_unproven(source, candidate, state)
    return states


def _gather(source: Source, prefix: str, candidate: Candidate, directory: dict[str, DirectoryEntry]) -> None:
    if candidate.place is None:
        return
    inner = f"/data/{candidate.key}"
    candidate.header = local_header_at(source, candidate.place.header)
    if candidate.header is not None:
        name = candidate.header.name
        candidate.named = name == prefix + inner if prefix else name.endswith(inner) and name.count("/") == 2
    end = candidate.place.data + candidate.nbytes
    candidate.descriptor = descriptor_at(source, end, candidate.nbytes, candidate.place.descriptor or 16)
    entry = directory.get(prefix + inner)
    if entry is not None and entry.header == candidate.place.header and entry.size == candidate.nbytes:
        candidate.entry = entry


def _find_line(source: Source, prefix: str, candidates: Sequence[Candidate]) -> None:
    """Tell which candidates stand in line: behind a record that is whole, or before one in its place."""
    following = False
    placed = sorted(
        (candidate for candidate in candidates if candidate.place is not None),
        key=lambda candidate: candidate.place.header if candidate.place is not None else 0,
    )
    # A file of exactly the length that its layout gives has lost or gained no byte.
    whole = bool(placed) and _expected_size(placed, prefix) == source.size
    anchored = False
    for candidate in placed:
        candidate.anchored = anchored
        signed = candidate.descriptor is not None and candidate.descriptor.signed
        anchored = signed or (whole and (anchored or candidate.named))
    for candidate in reversed(placed):
        assert candidate.place is not None
        if not following:
            after = local_header_at(source, end_of(candidate.place, candidate.nbytes))
            following = after is not None and (not prefix or after.name.startswith(prefix + "/"))
        candidate.in_line = following
        signed = candidate.descriptor is not None and candidate.descriptor.signed
        following = following or candidate.named or signed


def _expected_size(placed: Sequence[Candidate], prefix: str) -> int:
    """The length of a file that torch wrote, given its storages: two small records and the directory follow them."""
    last = placed[-1]
    assert last.place is not None
    tail = [(f"{prefix}/version", 2), (f"{prefix}/.data/serialization_id", 40)]
    at = list(places(end_of(last.place, last.nbytes), tail))[-1].data + 40 + 16
    small = ("data.pkl", ".format_version", ".storage_alignment", "byteorder", "version", ".data/serialization_id")
    names = [*small, *(f"data/{candidate.key}" for candidate in placed)]
    return at + sum(CENTRAL_HEADER.size + len(f"{prefix}/{name}".encode()) for name in names) + END_SIZE


def _is_inside(candidate: Candidate, size: int) -> bool:
    assert candidate.place is not None
    return candidate.place.data + candidate.nbytes <= size


def _without_overlaps(candidates: Sequence[Candidate], states: list[StorageState], jobs: list[int]) -> list[int]:
    """Leave out ranges that reach into another one, so that no byte is read twice; those with a witness come first."""
    begins: list[int] = []
    ends: list[int] = []
    kept: list[int] = []
    for number in sorted(jobs, key=lambda n: (not candidates[n].is_witnessed, states[n].offset or 0, n)):
        begin = states[number].offset or 0
        end = begin + states[number].nbytes
        at = bisect_left(begins, begin)
        if (at and ends[at - 1] > begin) or (at < len(begins) and begins[at] < end):
            states[number].lose("its record overlaps another one")
            continue
        begins.insert(at, begin)
        ends.insert(at, end)
        kept.append(number)
    return sorted(kept)


def _judge_cut(candidate: Candidate, state: StorageState, size: int) -> None:
    """A storage that ends beyond the file."""
    assert candidate.place is not None
    there = size - candidate.place.data
    if there <= 0 or not candidate.named:
        state.lose("the file ends before it" if there <= 0 else "another record, or none, is in its place")
    else:
        state.holes = [Hole(there, state.nbytes, Kind.MISSING)]
        state.reason = f"the file ends inside it: {there} of {state.nbytes} bytes are there, unproven"


def _judge_unproven(source: Source, candidate: Candidate, state: StorageState) -> None:
    """A storage whose bytes are in the file without a checksum that matches."""
    assert candidate.place is not None
    descriptor, entry = candidate.descriptor, candidate.entry
    placed = candidate.named or entry is not None or candidate.in_line
    if candidate.is_replaced:
        state.lose("the save was interrupted before it: another record is in its place")
    elif candidate.has_checksum():
        state.holes = [Hole(0, state.nbytes, Kind.ROTTED, located=False)]
        state.reason = "its CRC-32 does not match"
    elif (
        (placed or candidate.anchored)
        and descriptor is not None
        and not any(descriptor.raw)
        and (run := _zero_run(source, candidate)) >= _ZERO_RUN
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


def _zero_run(source: Source, candidate: Candidate) -> int:
    """How many bytes at the end of a storage are zero."""
    assert candidate.place is not None
    at = candidate.nbytes
    while at:
        size = min(at, 2**20)
        window = read_there(source, candidate.place.data + at - size, size)
        kept = len(window.rstrip(b"\0"))
        if kept or len(window) < size:
            return candidate.nbytes - (at - size + kept)
        at -= size
    return candidate.nbytes
