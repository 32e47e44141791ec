"""Recovery from damaged ``.fckpt`` files, written from section 16 of ``SPEC.md`` alone."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import xxhash
from reference_reader import (
    DIRECTORY,
    INDEX,
    MANIFEST,
    PAGE,
    RECORD,
    SUPERBLOCK,
    File,
    Record,
    attach,
    footer,
    manifest,
    record,
    sealed,
    superblock,
)
from reference_tree import NotACheckpoint, Refused, need, tree

T = TypeVar("T")


def named_headers(data: bytes) -> dict[int, bytes] | None:
    """Offset and digest of all headers, if the footer proves them (section 16.2)."""
    _, root, rows, _ = footer(data)
    (manifest_digest,) = [row[4] for row in rows if row[0] == 1]
    for kind, magic in ((7, DIRECTORY), (2, INDEX)):
        for begin in [row[2] for row in rows if row[0] == kind]:
            try:
                block = sealed(data, begin, magic)
            except Refused:
                continue
            (count,) = struct.unpack_from("<Q", block, 16)
            if kind == 7:
                found = [struct.unpack_from("<Q8x16s", block, 32 + 32 * n) for n in range(count)]
            else:
                found, at = [], 32 + 16 * count
                for n in range(count):
                    offset, size = struct.unpack_from("<2Q", block, 32 + 16 * n)
                    found.append((offset, block[at + size - 16 : at + size]))
                    at += size
            if xxhash.xxh3_128_digest(manifest_digest + b"".join(digest for _, digest in found)) == root:
                return dict(found)
    return None


def one_save(records: list[Record]) -> set[int]:
    """Numbers of the records that are shown to be of one save (section 16.4)."""
    by_number = {rec.number: rec for rec in records}
    groups: list[set[int]] = []
    for number, rec in sorted(by_number.items()):
        previous, before = by_number.get(number - 1), by_number.get(number - 2)
        if rec.links is None:
            follows = True
        elif previous:
            follows = rec.links[0] == previous.digest
        else:
            follows = before is not None and rec.links[1] == before.digest
        if groups and follows:
            groups[-1].add(number)
        elif groups and rec.links and before and rec.links[1] == before.digest:
            groups.append({number, *(n for n in groups[-1] if n <= number - 2)})
        else:
            groups.append({number})
    return max(groups, key=lambda group: sum(by_number[n].raw_size for n in group), default=set())


def recover(path: str | Path) -> File:
    """Finds whatever is whole in a damaged file (section 16)."""
    data = Path(path).read_bytes()

    def attempt(action: Callable[[], T]) -> T | None:
        try:
            return action()
        except (Refused, struct.error):
            return None

    def scan(magic: bytes) -> Iterator[bytes]:
        """All whole blocks with a magic."""
        for at in range(0, len(data) - 15, PAGE):
            block = attempt(lambda at=at: sealed(data, at, magic)) if data[at : at + 8] == magic else None
            if block:
                yield block

    by_footer = attempt(lambda: next(row[3:] for row in footer(data)[2] if row[0] == 1))
    size, digest = by_footer or attempt(lambda: superblock(data)[:2]) or (0, None)
    at_start = attempt(lambda: sealed(data, PAGE, MANIFEST))
    if at_start and digest in (None, at_start[-16:]):
        size, digest = len(at_start), at_start[-16:]
    copies: dict[int, list[bytes]] = {}  # headers in any index, by their offset; each proves itself
    rows = attempt(lambda: footer(data)[2]) or []
    places = [row[2:4] for row in rows if row[0] == 2] or [
        (at, struct.unpack_from("<Q", data, at + 8)[0])
        for at in range(0, len(data) - 15, PAGE)
        if data[at : at + 8] == INDEX
    ]
    for begin, length in places:
        index = data[begin : begin + length]
        at = index.find(RECORD)
        while at >= 0:
            header = attempt(lambda at=at, index=index: sealed(index, at, RECORD))
            if header:
                copies.setdefault(struct.unpack_from("<Q", header, 24)[0], []).append(header)
            at = index.find(RECORD, at + 1)

    named = attempt(lambda: named_headers(data))

    def record_at(at: int, digest: bytes | None) -> tuple[Record, bytes] | None:
        """The record header that stands at an offset, or else its copy in an index."""
        for block in (attempt(lambda: sealed(data, at, RECORD)), *copies.get(at, [])):
            rec = attempt(lambda block=block: record(block, at, digest, None)) if block else None
            if rec and block and (named is None or named.get(at) == rec.digest):
                return rec, block[80:96]
        return None

    at, records = PAGE + size, []
    while at < len(data):
        if accepted := record_at(at, digest):
            rec, digest = accepted
            records.append(rec)
            at = rec.end
        else:
            at += PAGE
    blocks = [block for block in scan(MANIFEST) if block[-16:] == digest]
    found = attempt(lambda: manifest(blocks[0])) if blocks else None

    entries = found.entries if found else [entry for rec in records for entry in rec.entries]
    for rec in records:
        attach(data, rec, entries)
    whole = {entry.name: entry for entry in entries if entry.memory is not None}
    own = {rec.number for rec in records} if named else one_save(records)
    strange = {storage for rec in records if rec.number not in own for storage, *_ in rec.storages}
    strangers = [entry.name for entry in entries if entry.storage in strange]
    lost = [entry.name for entry in entries if entry.memory is None]
    need(bool(records or by_footer) or data[:8] == SUPERBLOCK, "nothing to recover", NotACheckpoint)
    state = tree(found.tree, [entry if entry.memory is not None else None for entry in entries]) if found else None
    return File(state, tree(found.metadata, []) if found else None, whole, None, records, [], lost, strangers)
