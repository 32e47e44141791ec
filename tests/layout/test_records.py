"""Record headers: round trip, damage, and tables that cannot be."""

from __future__ import annotations

import contextlib
import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.constants import CHUNK_SIZE, CODEC_NONE, CODEC_ZSTD, LEAF_SIZE, LEAVES_PER_CHUNK
from fastckpt.errors import DamagedError, FastckptError, UnsupportedVersionError
from fastckpt.layout.blocks import Extent, align, block_digest, seal
from fastckpt.layout.entries import Entry, encode_entry_table
from fastckpt.layout.records import (
    Chunk,
    Links,
    PackedStorage,
    Record,
    count_chunks,
    count_leaves,
    decode_record_header,
    encode_record_header,
    header_size,
    raw_chunk_table,
)

OFFSET = 8192
MANIFEST = bytes(range(16))
ENTRIES = [Entry("a", "int8", (100,), (1,), 4, 0), Entry("b", "int8", (50,), (1,), 6, 0)]
LIMIT = 1 << 40


def header(
    storages: list[PackedStorage],
    *,
    chunks: list[Chunk] | None = None,
    entries: list[Entry] | None = None,
    offset: int = OFFSET,
) -> bytes:
    raw_size = storages[-1].offset + storages[-1].nbytes if storages else 0
    leaves = bytes(n % 251 for n in range(count_leaves(raw_size) * 8))
    table = raw_chunk_table(raw_size, leaves) if chunks is None else chunks
    return encode_record_header(
        number=3,
        offset=offset,
        raw_size=raw_size,
        stored_size=sum(chunk.stored_size for chunk in table),
        chunks=table,
        leaves=leaves,
        storages=storages,
        entry_table=encode_entry_table(entries or []),
        manifest_digest=MANIFEST,
        links=LINKS,
    )


LINKS = Links(b"p" * 16, b"b" * 16)
PACK = [PackedStorage(4, 0, 100), PackedStorage(6, 128, 50)]


def example() -> bytes:
    return header(PACK, entries=ENTRIES)


def use(record: Record) -> None:
    """Everything a reader does with a header."""
    record.entries.names()
    list(record.entries)
    for chunk in range(len(record.chunks)):
        assert record.chunk_extent(chunk).end <= LIMIT
        assert record.chunk_raw(chunk).size <= CHUNK_SIZE
        record.chunk_leaves(chunk)


def test_round_trip() -> None:
    block = example()
    record = decode_record_header(block, limit=LIMIT)
    use(record)
    assert record.number == 3
    assert record.header == Extent(OFFSET, len(block))
    assert record.payload == Extent(OFFSET + 4096, 178)
    assert record.end == OFFSET + 8192
    assert (record.raw_size, record.stored_size) == (178, 178)
    assert record.storages == PACK
    assert list(record.entries) == ENTRIES
    assert record.manifest_digest == MANIFEST
    assert record.links == LINKS
    assert record.digest == block_digest(block)
    assert record.is_raw


def storage_chain(sizes: list[int]) -> list[PackedStorage]:
    storages, end = [], 0
    for number, size in enumerate(sizes):
        storages.append(PackedStorage(2 * number, align(end, 64), size))
        end = align(end, 64) + size
    return storages


@given(st.lists(st.integers(0, 3 * CHUNK_SIZE), min_size=1, max_size=3))
def test_round_trip_of_any_sizes(sizes: list[int]) -> None:
    storages = storage_chain(sizes)
    block = header(storages)
    record = decode_record_header(block, limit=LIMIT)
    use(record)
    raw_size = storages[-1].offset + storages[-1].nbytes
    table = encode_entry_table([])
    assert len(block) == header_size(raw_size, storages, len(table))
    assert record.storages == storages
    assert len(record.chunks) == count_chunks(raw_size)
    assert len(record.leaves) == 8 * count_leaves(raw_size)
    assert sum(record.chunk_raw(n).size for n in range(len(record.chunks))) == raw_size
    assert b"".join(record.chunk_leaves(n) for n in range(len(record.chunks))) == bytes(record.leaves)


def test_encoded_chunks() -> None:
    size = 2 * CHUNK_SIZE + 10
    chunks = [
        Chunk(0, 77, CODEC_ZSTD, 1),
        Chunk(77, CHUNK_SIZE, CODEC_NONE, 2),
        Chunk(77 + CHUNK_SIZE, 9, CODEC_ZSTD, 2**64 - 1),
    ]
    record = decode_record_header(header([PackedStorage(0, 0, size)], chunks=chunks), limit=LIMIT)
    assert record.chunks == chunks
    assert not record.is_raw
    assert record.chunk_extent(1) == Extent(record.payload.offset + 77, CHUNK_SIZE)
    assert record.chunk_raw(2) == Extent(2 * CHUNK_SIZE, 10)
    assert len(record.chunk_leaves(0)) == LEAVES_PER_CHUNK * 8
    assert len(record.chunk_leaves(2)) == 8


def test_empty_record() -> None:
    record = decode_record_header(header([PackedStorage(0, 0, 0)]), limit=OFFSET + 4096)
    assert (record.chunks, len(record.leaves), record.payload.size) == ([], 0, 0)
    assert record.end == OFFSET + 4096


@pytest.mark.parametrize("size", [1, LEAF_SIZE, LEAF_SIZE + 1, CHUNK_SIZE, CHUNK_SIZE + 1, 5 * CHUNK_SIZE - 1])
def test_raw_chunk_digests_are_over_their_leaves(size: int) -> None:
    leaves = bytes(n % 253 for n in range(count_leaves(size) * 8))
    table = raw_chunk_table(size, leaves)
    assert [chunk.stored_size for chunk in table[:-1]] == [CHUNK_SIZE] * (len(table) - 1)
    assert sum(chunk.stored_size for chunk in table) == size
    for number, chunk in enumerate(table):
        part = leaves[number * LEAVES_PER_CHUNK * 8 :][: LEAVES_PER_CHUNK * 8]
        assert chunk.stored_digest == xxhash.xxh3_64_intdigest(part)


@pytest.mark.parametrize("change", [0x01, 0xFF])
def test_every_changed_byte_is_noticed(change: int) -> None:
    block = bytearray(example())
    for offset in range(len(block)):
        block[offset] ^= change
        with pytest.raises(DamagedError):
            decode_record_header(bytes(block), limit=LIMIT)
        block[offset] ^= change


BODY = example()[16:-16]


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_changed_and_sealed_again_raises_only_our_errors(at: int, change: bytes) -> None:
    body = bytearray(BODY)
    body[at : at + len(change)] = change
    with contextlib.suppress(FastckptError):
        use(decode_record_header(seal(b"FCKPTREC", body), limit=LIMIT))


def resealed(*changes: tuple[int, str, int], block: bytes | None = None) -> bytes:
    """The example with fields changed (offset in the block, struct code, value), and a right digest."""
    changed = bytearray(block or example())
    for offset, code, value in changes:
        struct.pack_into("<" + code, changed, offset, value)
    return seal(b"FCKPTREC", changed[16:-16])


@pytest.mark.parametrize("field", [32, 40, 48, 56, 64, 72])
@pytest.mark.parametrize("value", [0, 3, 4096, 2**20, 2**32, 2**61, 2**63, 2**64 - 8, 2**64 - 1])
def test_sizes_that_cannot_be_are_refused(field: int, value: int) -> None:
    with pytest.raises(DamagedError):
        use(decode_record_header(resealed((field, "Q", value)), limit=LIMIT))


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(UnsupportedVersionError):
        decode_record_header(resealed((22, "H", 1)), limit=LIMIT)


@pytest.mark.parametrize("version", [1, 3, 2**16 - 1])
def test_unknown_versions_are_refused(version: int) -> None:
    with pytest.raises(UnsupportedVersionError):
        decode_record_header(resealed((20, "H", version)), limit=LIMIT)


@pytest.mark.parametrize("offset", [1, 4095, OFFSET + 1, 2**64 - 4096, 2**63])
def test_places_that_cannot_be_are_refused(offset: int) -> None:
    with pytest.raises(DamagedError):
        decode_record_header(resealed((24, "Q", offset)), limit=LIMIT)


def test_a_record_must_lie_inside_the_file() -> None:
    end = OFFSET + 4096 + 178
    decode_record_header(example(), limit=end)
    with pytest.raises(DamagedError, match="beyond the file"):
        decode_record_header(example(), limit=end - 1)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (((128, "Q", 1),), "chunk that does not begin at 0"),
        (((128 + 8, "I", 0),), "empty chunk"),
        (((128 + 8, "I", 179),), "chunk larger than its raw size"),
        (((128 + 8, "I", 177),), "codec none, but smaller"),
        (((128 + 12, "I", CODEC_ZSTD),), "encoded, but not smaller"),
        (((128 + 8, "I", 100), (128 + 12, "I", CODEC_ZSTD)), "payload not filled"),
        (((160 + 1, "B", 7),), "storage numbers that descend"),
        (((160 + 1, "B", 6),), "the same storage twice"),
        (((160 + 0, "B", 3),), "a width that there is not"),
        (((160 + 5, "B", 49),), "raw bytes behind the last storage"),
        (((160 + 5, "B", 51),), "storage beyond the record"),
        (((160 + 4, "B", 200),), "another place for the last storage"),
        (((4096 - 17, "B", 1),), "padding that is not zero"),
    ],
)
def test_tables_that_cannot_be_are_refused(changes: tuple[tuple[int, str, int], ...], what: str) -> None:
    assert tuple(example()[160:166]) == (1, 4, 6, 1, 100, 50)
    with pytest.raises(DamagedError):
        decode_record_header(resealed(*changes), limit=LIMIT)


def test_encoded_chunks_without_a_gap_only() -> None:
    size = 2 * CHUNK_SIZE
    good = header([PackedStorage(0, 0, size)], chunks=[Chunk(0, 10, CODEC_ZSTD, 1), Chunk(10, 20, CODEC_ZSTD, 2)])
    decode_record_header(good, limit=LIMIT)
    for offset in (0, 9, 11, 2**63):
        with pytest.raises(DamagedError, match="chunk 1"):
            decode_record_header(resealed((128 + 24, "Q", offset), block=good), limit=LIMIT)
