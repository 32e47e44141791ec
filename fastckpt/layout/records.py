"""Records: the units on disk that describe themselves.

A record's header block states where it lies, how its payload is cut into
chunks and encoded, the digest of every leaf, and which storages and entries
it holds. With nothing but one header and its payload, those tensors can be
rebuilt and proven.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Final, NamedTuple

import xxhash

from fastckpt.constants import (
    ALIGNMENT,
    CHUNK_SIZE,
    CODEC_NONE,
    DIGEST_SIZE,
    FORMAT_VERSION,
    LEAF_SIZE,
    LEAVES_PER_CHUNK,
    MAGIC_RECORD,
    PACK_ALIGNMENT,
)
from fastckpt.errors import DamagedError, UnsupportedVersionError
from fastckpt.layout import version1
from fastckpt.layout.blocks import Extent, align, block_digest, require_zero, seal, sealed_size, unseal
from fastckpt.layout.columns import decode_column, encode_column, rows_of
from fastckpt.layout.entries import EntryTable, decode_entry_table
from fastckpt.layout.places import PackedStorage

_HEAD: Final = struct.Struct("<IHHQQQQQQQ16s")
_CHUNK: Final = struct.Struct("<QIIQ")
_LINKS: Final = struct.Struct("<16s16s")


class Chunk(NamedTuple):
    """One row of the chunk table.

    Attributes:
        offset: First stored byte, from the start of the payload.
        stored_size: Stored bytes.
        codec: CODEC_* id.
        stored_digest: XXH3-64 of the stored bytes, or, for codec none, of the
            chunk's leaf digests (which already cover those bytes).
    """

    offset: int
    stored_size: int
    codec: int
    stored_digest: int


class Links(NamedTuple):
    """Digests of the headers of the two records before: what tells the records of one save from those of another.

    Zeros where there is no such record.
    """

    previous: bytes
    before: bytes


NO_LINKS: Final = Links(bytes(DIGEST_SIZE), bytes(DIGEST_SIZE))


def count_chunks(raw_size: int) -> int:
    """How many chunks ``raw_size`` bytes make."""
    return -(-raw_size // CHUNK_SIZE)


def count_leaves(raw_size: int) -> int:
    """How many leaves ``raw_size`` bytes make."""
    return -(-raw_size // LEAF_SIZE)


def header_size(raw_size: int, storages: Sequence[PackedStorage], entry_table_size: int) -> int:
    """Size in bytes of the header block of such a record; known before its payload is."""
    tables = count_chunks(raw_size) * _CHUNK.size + count_leaves(raw_size) * 8 + len(_encode_storages(storages))
    return sealed_size(_HEAD.size + _LINKS.size + tables + entry_table_size)


def raw_chunk_digest(leaves: bytes | memoryview) -> int:
    """The stored digest of a chunk that is stored as it is, from its leaf digests (u64 each)."""
    return xxhash.xxh3_64_intdigest(leaves)


def raw_chunk_table(raw_size: int, leaves: bytes | memoryview) -> list[Chunk]:
    """The chunk table of a record whose ``raw_size`` bytes are stored as they are."""
    table = []
    step = LEAVES_PER_CHUNK * 8
    for index in range(count_chunks(raw_size)):
        offset = index * CHUNK_SIZE
        digest = raw_chunk_digest(leaves[index * step : (index + 1) * step])
        table.append(Chunk(offset, min(CHUNK_SIZE, raw_size - offset), CODEC_NONE, digest))
    return table


@dataclass(slots=True, eq=False)
class Record:
    """A decoded record header.

    Attributes:
        number: Its number in the file.
        header: Where the header block lies.
        raw_size: Bytes before encoding.
        stored_size: Bytes of the payload, without its padding.
        chunks: The chunk table.
        leaves: Leaf digests, u64 little-endian each, as stored.
        storages: What it holds.
        entry_table: The entries on those storages, still encoded.
        manifest_digest: Digest of the manifest it was written under.
        digest: The 16-byte digest the header block ends with.
        links: Which records came before it; None in version 1, which does not say.
        is_raw: Whether the payload is the raw bytes, so that it can be mapped.
    """

    number: int
    header: Extent
    raw_size: int
    stored_size: int
    chunks: list[Chunk]
    leaves: memoryview
    storages: list[PackedStorage]
    entry_table: memoryview
    manifest_digest: bytes
    digest: bytes
    links: Links | None = None
    is_raw: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_raw = all(chunk.codec == CODEC_NONE for chunk in self.chunks)

    @property
    def payload(self) -> Extent:
        """Where the stored bytes lie."""
        return Extent(self.header.end, self.stored_size)

    @property
    def end(self) -> int:
        """First byte after the record, padding included."""
        return align(self.payload.end)

    @property
    def entries(self) -> EntryTable:
        """The entries on its storages."""
        return (decode_entry_table if self.links else version1.decode_entry_table)(self.entry_table)

    def chunk_extent(self, chunk: int) -> Extent:
        """Where the stored bytes of a chunk lie in the file."""
        row = self.chunks[chunk]
        return Extent(self.payload.offset + row.offset, row.stored_size)

    def chunk_raw(self, chunk: int) -> Extent:
        """Which of the record's raw bytes a chunk holds."""
        start = chunk * CHUNK_SIZE
        return Extent(start, min(CHUNK_SIZE, self.raw_size - start))

    def chunk_leaves(self, chunk: int) -> memoryview:
        """The leaf digests of a chunk, u64 little-endian each."""
        step = LEAVES_PER_CHUNK * 8
        return self.leaves[chunk * step : (chunk + 1) * step]


def encode_record_header(
    *,
    number: int,
    offset: int,
    raw_size: int,
    stored_size: int,
    chunks: Sequence[Chunk],
    leaves: bytes | memoryview,
    storages: Sequence[PackedStorage],
    entry_table: bytes,
    manifest_digest: bytes,
    links: Links,
) -> bytes:
    """The sealed header block of a record; its size is `header_size`."""
    head = _HEAD.pack(
        number,
        FORMAT_VERSION,
        0,
        offset,
        raw_size,
        stored_size,
        len(chunks),
        len(leaves) // 8,
        len(storages),
        len(entry_table),
        manifest_digest,
    )
    return seal(
        MAGIC_RECORD,
        head,
        _LINKS.pack(*links),
        b"".join(_CHUNK.pack(*chunk) for chunk in chunks),
        leaves,
        _encode_storages(storages),
        entry_table,
    )


def decode_record_header(block: bytes | memoryview, *, limit: int) -> Record:
    """Decode a sealed record header.

    Args:
        block: The whole block.
        limit: Size of the file; a record that reaches beyond is damage.

    Raises:
        DamagedError: The digest does not match, or what it says cannot be.
        UnsupportedVersionError: It has must-understand flags of a later version.
    """
    body = unseal(block, MAGIC_RECORD, what="record header")
    (
        number,
        version,
        flags,
        offset,
        raw_size,
        stored_size,
        chunk_count,
        leaf_count,
        storage_count,
        table_size,
        manifest_digest,
    ) = _HEAD.unpack_from(body)
    version = version1.stated_version(version)
    if flags:
        raise UnsupportedVersionError(f"record {number} needs flags {flags:#x}", next_step="upgrade fastckpt")
    links = Links(*_LINKS.unpack_from(body, _HEAD.size)) if version > 1 else None
    at = _HEAD.size + (_LINKS.size if links else 0)
    if chunk_count != count_chunks(raw_size) or leaf_count != count_leaves(raw_size):
        raise DamagedError(f"record {number} has {chunk_count} chunks and {leaf_count} leaves for {raw_size} bytes")
    header = Extent(offset, len(block))
    if offset % ALIGNMENT or header.end + stored_size > limit:
        raise DamagedError(f"record {number} reaches beyond the file", expected=limit, actual=header.end + stored_size)
    chunks_end = at + chunk_count * _CHUNK.size
    leaves_end = chunks_end + leaf_count * 8
    if leaves_end > len(body):
        raise DamagedError(f"the tables of record {number} reach beyond its header", actual=leaves_end)
    chunks = [Chunk(*row) for row in _CHUNK.iter_unpack(body[at:chunks_end])]
    _check_chunks(number, chunks, raw_size, stored_size)
    decode = version1.decode_storages if links is None else _decode_storages
    storages, storages_end = decode(body, leaves_end, storage_count)
    if table_size > len(body) - storages_end:
        raise DamagedError(f"the tables of record {number} reach beyond its header", actual=table_size)
    _check_storages(number, storages, raw_size)
    require_zero(body[storages_end + table_size :], what=f"padding of the header of record {number}")
    return Record(
        number,
        header,
        raw_size,
        stored_size,
        chunks,
        body[chunks_end:leaves_end],
        storages,
        body[storages_end : storages_end + table_size],
        manifest_digest,
        block_digest(block),
        links,
    )


def _encode_storages(storages: Sequence[PackedStorage]) -> bytes:
    numbers, sizes = [packed.storage for packed in storages], [packed.nbytes for packed in storages]
    return encode_column(numbers) + encode_column(sizes)


def _decode_storages(body: memoryview, at: int, count: int) -> tuple[list[PackedStorage], int]:
    """Numbers and sizes are stored; the offsets follow."""
    numbers, at = decode_column(body, at, count, what="record header")
    sizes, at = decode_column(body, at, count, what="record header")
    ends = accumulate((align(nbytes, PACK_ALIGNMENT) for nbytes in sizes), initial=0)
    return rows_of(PackedStorage, numbers, islice(ends, count), sizes), at


def _check_storages(number: int, storages: Sequence[PackedStorage], raw_size: int) -> None:
    """Storages must ascend, each at the next aligned place, and fill the record: none overlaps another."""
    last, end = -1, 0
    for storage, offset, nbytes in storages:
        if storage <= last or offset != align(end, PACK_ALIGNMENT) or offset + nbytes > raw_size:
            raise DamagedError(f"storage {storage} has an impossible place in record {number}")
        last, end = storage, offset + nbytes
    if end != raw_size:
        raise DamagedError(f"the storages of record {number} do not fill it", expected=raw_size, actual=end)


def _check_chunks(number: int, chunks: Sequence[Chunk], raw_size: int, stored_size: int) -> None:
    """Chunks must follow one another without a hole and fill the payload exactly."""
    at = 0
    for index, chunk in enumerate(chunks):
        raw = min(CHUNK_SIZE, raw_size - index * CHUNK_SIZE)
        if (
            chunk.offset != at
            or not 0 < chunk.stored_size <= raw
            or (chunk.codec == CODEC_NONE) != (chunk.stored_size == raw)
        ):
            raise DamagedError(f"chunk {index} of record {number} has an impossible place or size", chunk=index)
        at += chunk.stored_size
    if at != stored_size:
        raise DamagedError(f"the chunks of record {number} do not fill its payload", expected=stored_size, actual=at)
