"""A ``.fckpt`` whose content stands further back or further in front than it was written.

Bytes were put in before it, or its first ones taken away. Digests prove a block wherever it is; only the offsets that
it states are off, all by the same number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

from fastckpt.constants import ALIGNMENT, FOOTER_SIZE, LEAF_SIZE, MAGIC_RECORD, MAGIC_SUPERBLOCK, SUPERBLOCK_SIZE
from fastckpt.errors import FastckptError
from fastckpt.fckpt.payload import Reading, Target, read_targets
from fastckpt.fckpt.remains import Remains, read_block, scan
from fastckpt.findings import Finding, Kind
from fastckpt.io.part import Part
from fastckpt.io.source import Source
from fastckpt.io.unreadable import read_there
from fastckpt.layout.blocks import Extent
from fastckpt.layout.frame import decode_superblock, stated_file_size
from fastckpt.layout.records import Record, decode_record_header

_WINDOW: Final = 8 * 2**20
_MAGICS: Final = re.compile(b"|".join(map(re.escape, (MAGIC_SUPERBLOCK, MAGIC_RECORD))))
_MAX_TRIED: Final = 1000
"""Places that look like the beginning of a block and are looked into."""


def scan_shifted(source: Source, *, threads: int) -> Remains:
    """What `scan` finds, also where everything has moved; offsets are those in the file as it is.

    Raises:
        UnsupportedVersionError: It needs a newer fastckpt.
    """
    remains = scan(source, threads=threads)
    if remains.anchored or any(_stands(source, record) for record in remains.records.values()):
        return remains
    for shift in filter(None, (_shift_of_the_end(source), _shift_of_blocks(source))):
        shifted = _scan_at(source, shift, threads)
        if shifted.anchored:
            return shifted
    return remains


def _scan_at(source: Source, shift: int, threads: int) -> Remains:
    straight = Part(source, shift, source.size - shift)
    remains = scan(straight, threads=threads, find=lambda magic, start: _find_blocks(straight, magic, start))
    # Of a record that begins before the file nothing is where a mirror of its header says.
    there = {number: record for number, record in remains.records.items() if record.header.offset + shift >= 0}
    remains.records = {number: _moved(record, shift) for number, record in there.items()}
    remains.alternates = {
        number: [_moved(record, shift) for record in others if record.header.offset + shift >= 0]
        for number, others in remains.alternates.items()
    }
    remains.findings = [replace(f, offset=max(f.offset + shift, 0)) for f in remains.findings]
    what = f"{shift} bytes stand before the checkpoint" if shift > 0 else f"the first {-shift} bytes are missing"
    kind = Kind.INCONSISTENT if shift > 0 else Kind.MISSING
    remains.findings.insert(0, Finding(kind, what, 0, max(shift, 0), loss=False))
    return remains


def _find_blocks(part: Part, magic: bytes, start: int) -> list[int]:
    """The multiples of 4 KiB at which a block of this kind seems to begin."""
    found = (at - part.begin for at in _places(part.base, re.compile(re.escape(magic)), start + part.begin))
    return [at for at in found if at % ALIGNMENT == 0]


def _stands(source: Source, record: Record, *, beginning: bool = False) -> bool:
    """Whether the first leaf of a record, and its last one unless only the beginning counts, stand behind its header.

    Of equal numbers, as in a tensor of ones, the first leaf stands also where all has moved a little.
    """
    last = (record.raw_size - 1) // LEAF_SIZE * LEAF_SIZE
    starts = [0] if beginning else [0, last]
    targets = [Target(record, start, min(LEAF_SIZE, record.raw_size - start), None) for start in starts]
    return record.raw_size > 0 and not read_targets(source, targets, Reading(threads=1))


def _moved(record: Record, shift: int) -> Record:
    return replace(record, header=Extent(record.header.offset + shift, record.header.size))


def _shift_of_the_end(source: Source) -> int:
    """By how many bytes the footer stands too far back; 0 if the end is not whole."""
    try:
        return source.size - stated_file_size(read_there(source, source.size - FOOTER_SIZE, FOOTER_SIZE))
    except FastckptError:
        return 0


def _shift_of_blocks(source: Source) -> int:
    """By how many bytes the first whole superblock or record header stands too far back; 0 if there is none."""
    for at in islice(_places(source, _MAGICS, 0), _MAX_TRIED):
        stated = _stated_offset(source, at)
        if stated is not None:
            return at - stated
    return 0


def _stated_offset(source: Source, at: int) -> int | None:
    """Where a block says that it stands, if there is a whole one at an offset."""
    try:
        if read_there(source, at, len(MAGIC_RECORD)) == MAGIC_RECORD:
            record = decode_record_header(read_block(source, at, MAGIC_RECORD, what="record header"), limit=2**63)
            stated = record.header.offset
            # The copy of a header in the index is whole as well, but not what stands behind it.
            return stated if _stands(source, _moved(record, at - stated), beginning=True) else None
        decode_superblock(source.read(at, SUPERBLOCK_SIZE))
        return 0
    except FastckptError:
        return None


def _places(source: Source, pattern: re.Pattern[bytes], start: int) -> Iterator[int]:
    """Where a pattern stands in a file, from an offset on."""
    at = max(start, 0)
    overlap = max(len(MAGIC_SUPERBLOCK), len(MAGIC_RECORD)) - 1
    while at < source.size:
        window = read_there(source, at, _WINDOW + overlap)
        yield from (at + match.start() for match in pattern.finditer(window) if match.start() < _WINDOW)
        at += _WINDOW
