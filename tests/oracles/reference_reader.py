"""A second reader of ``.fckpt`` files: slow, plain, and written from ``fastckpt/SPEC.md`` alone.

It shares no line with the package, so what both read the same way is what the text says. It holds the whole file in
memory. ``read`` refuses a file with any damage at all, as a verifier would; ``read(path, strict=False)`` makes do with
one whole copy of everything, as a reader may. ``reference_recovery`` follows the rules of section 16.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import reference_planes
import xxhash
import zstandard
from reference_tree import DTYPES, Damaged, NotACheckpoint, Tensor, Unsupported, need, tree

LEAF, CHUNK, PAGE, PACK = 16384, 1048576, 4096, 64
SUPERBLOCK, MANIFEST, RECORD = b"\x89FCKPT\r\n", b"FCKPTMAN", b"FCKPTREC"
INDEX, DIRECTORY, SOURCE, FOOTER = b"FCKPTIDX", b"FCKPTDIR", b"FCKPTSRC", b"FCKPTEND"
NONE = bytes(16)


@dataclass
class Record:
    """A decoded record header."""

    number: int
    offset: int
    payload: int
    raw_size: int
    stored_size: int
    chunks: list[tuple[int, int, int, int]]
    leaves: tuple[int, ...]
    storages: list[tuple[int, int, int]]
    entries: list[Tensor]
    digest: bytes
    version: int
    links: tuple[bytes, bytes] | None

    @property
    def end(self) -> int:
        """Where the next record starts."""
        return align(self.payload + self.stored_size, PAGE)


@dataclass
class Manifest:
    """A decoded manifest; tree and metadata are still encoded."""

    storages: list[tuple[int, int, int]]
    entries: list[Tensor]
    record_count: int
    tree: bytes
    metadata: bytes
    digest: bytes
    size: int
    version: int


@dataclass
class File:
    """What a file holds. ``lost`` and ``None`` in place of a tensor: only after a recovery; ``strangers`` are not shown
    to be of the same save as the others."""

    state: Any
    metadata: dict[Any, Any] | None
    tensors: dict[str, Tensor]
    root: bytes | None = None
    records: list[Record] = field(default_factory=list)
    sections: list[tuple[int, int, int, int, bytes]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


T = TypeVar("T")


def align(number: int, to: int) -> int:
    """The smallest multiple of ``to`` that is not below the number."""
    return -(-number // to) * to


def sealed(data: bytes, at: int, magic: bytes) -> bytes:
    """The whole sealed block at an offset (section 4)."""
    need(0 <= at <= len(data) - PAGE, f"{magic!r}: the block at {at} lies outside of the file")
    found, size = struct.unpack_from("<8sQ", data, at)
    need(found == magic, f"{magic!r}: another magic at {at}: {found!r}")
    need(size % PAGE == 0 and PAGE <= size <= len(data) - at, f"{magic!r}: impossible size {size}")
    block = data[at : at + size]
    need(xxhash.xxh3_128_digest(block[:-16]) == block[-16:], f"{magic!r}: the block at {at} is not what was written")
    return block


def ends(block: bytes, at: int) -> None:
    """Checks that the body of a block ends at an offset, and that only zeros fill it up."""
    need(at <= len(block) - 16, "the block is smaller than its body")
    need(not any(block[at:-16]), "the block is not filled up with zeros")


def features(block: bytes) -> int:
    """The fields that superblock and footer have in common; gives the version."""
    version, reserved, must_understand, _ = struct.unpack_from("<H6sQQ", block, 16)
    need(version in (1, 2), f"version {version}", Unsupported)
    need(must_understand == 0, f"must-understand flags {must_understand:#x}", Unsupported)
    need(not any(reserved), "reserved bytes are not zero", Unsupported)
    return int(version)


def block_version(field: int) -> int:
    """The version that a manifest or a record header states."""
    need(field in (0, 2), f"version {field}", Unsupported)
    return field or 1


def column(table: bytes, at: int, count: int) -> tuple[list[int], int]:
    """The numbers of a column, and where it ends (section 3)."""
    need(at < len(table) and table[at] in (1, 2, 4, 8), "a column has no width")
    width, end = table[at], at + 1 + table[at] * count
    need(end <= len(table), "a column does not end inside its table")
    return [int.from_bytes(table[n : n + width], "little") for n in range(at + 1, end, width)], end


def superblock(data: bytes) -> tuple[int, bytes, int]:
    """Size and digest of the manifest, and the version, as the superblock states them (section 6)."""
    block = sealed(data, 0, SUPERBLOCK)
    need(len(block) == PAGE, "the superblock is not 4096 bytes large")
    version = features(block)
    *sizes, offset, size, digest = struct.unpack_from("<4I2Q16s", block, 40)
    need(sizes == [LEAF, CHUNK, PAGE, PACK], f"other sizes: {sizes}", Unsupported)
    need(offset == PAGE, "the manifest is not at 4096")
    ends(block, 88)
    return size, digest, version


def footer(data: bytes) -> tuple[int, bytes, list[tuple[int, int, int, int, bytes]], int]:
    """The number of records, the root digest, the sections and the version (sections 12 and 13)."""
    begin = len(data) - PAGE
    block = sealed(data, begin, FOOTER)
    version = features(block)
    file_size, records, root, count, reserved = struct.unpack_from("<2Q16s2I", block, 40)
    need(file_size == len(data) and begin % PAGE == 0, "the file has another size than its footer says")
    need(count <= 100 and not reserved, "the footer has too many sections, or a reserved field is not zero")
    ends(block, 80 + 40 * count)
    rows = [struct.unpack_from("<2I2Q16s", block, 80 + 40 * n) for n in range(count)]
    for kind, flags, offset, size, _ in rows:
        need(
            kind in (1, 2, 3, 4) or (kind == 7 and version == 2) or not flags & 1,
            f"section of unknown kind {kind}",
            Unsupported,
        )
        need(not (offset % PAGE or size % PAGE) and size >= PAGE and offset + size <= begin, "a section lies outside")
    kinds = [kind for kind, *_ in rows]
    once = (1, 2, 3) if version == 1 else (1, 2, 3, 7)
    need(all(kinds.count(kind) == 1 for kind in once), "not exactly one manifest, index, directory and manifest copy")
    return records, root, rows, version


Row = tuple[int, int, int, tuple[int, ...], int, bytes]
"""One entry: storage, dtype, flags, shape and stride, storage_offset, name."""


def entry_rows(table: bytes) -> list[Row]:
    """The rows of an entry table (section 8)."""
    need(len(table) >= 24, "the entry table is cut off")
    count, kinds_size, names_size = struct.unpack_from("<3Q", table)
    need(kinds_size <= len(table) - 24, "the kinds do not end inside the table")
    kinds, at = [], 24
    while at < 24 + kinds_size:
        need(at + 4 <= 24 + kinds_size, "a kind is cut off")
        dtype, ndim, flags, reserved = table[at : at + 4]
        need(at + 4 + 16 * ndim <= 24 + kinds_size, "a kind is cut off")
        need(reserved == 0, "a kind has reserved bits", Unsupported)
        kinds.append((dtype, flags, struct.unpack_from(f"<{2 * ndim}Q", table, at + 4)))
        at += 4 + 16 * ndim
    columns = []
    for _ in range(5):
        numbers, at = column(table, at, count)
        columns.append(numbers)
    need(at + names_size == len(table) and sum(columns[4]) == names_size, "the entry table has another size")
    rows, name = [], b""
    for kind, storage, offset, shared, rest in zip(*columns, strict=True):
        need(kind < len(kinds), f"kind {kind} does not exist")
        need(shared <= min(63, len(name)), "a name shares too much")
        name = name[:shared] + table[at : at + rest]
        at += rest
        dtype, flags, dims = kinds[kind]
        rows.append((storage, dtype, flags, dims, offset, name))
    return rows


def entry_rows_1(table: bytes) -> list[Row]:
    """The rows of an entry table of version 1 (section 24)."""
    need(len(table) >= 24, "the entry table is cut off")
    count, dims_count, names_size = struct.unpack_from("<3Q", table)
    dims_at = 24 + 24 * count
    need(len(table) == dims_at + 8 * dims_count + names_size, "the entry table has another size than its parts")
    rows = [struct.unpack_from("<I4BQ2I", table, 24 + 24 * n) for n in range(count)]
    need(dims_count == 2 * sum(row[2] for row in rows), "the entries have other dimensions than the table")
    need(names_size == sum(row[6] for row in rows), "the entries have other names than the table")
    name_at, found = dims_at + 8 * dims_count, []
    for storage, dtype, ndim, flags, reserved, offset, name_size, reserved_too in rows:
        need(not reserved and not reserved_too, "an entry has reserved bits", Unsupported)
        dims = struct.unpack_from(f"<{2 * ndim}Q", table, dims_at)
        found.append((storage, dtype, flags, dims, offset, table[name_at : name_at + name_size]))
        dims_at, name_at = dims_at + 16 * ndim, name_at + name_size
    return found


def entry_table(table: bytes, storage_count: int | None, version: int) -> list[Tensor]:
    """The entries of a manifest or of a record header (section 8)."""
    entries = []
    for storage, dtype, flags, dims, offset, name in (entry_rows_1 if version == 1 else entry_rows)(table):
        ndim = len(dims) // 2
        need(storage_count is None or storage < storage_count, f"storage {storage} does not exist")
        need(dtype in DTYPES, f"unknown dtype {dtype}", Unsupported)
        need(flags < 16, "an entry has reserved bits", Unsupported)
        need(ndim <= 64 and (dtype >= 16 or not flags & 1), "65 dimensions, or an integer that requires a gradient")
        elements = math.prod(extent for extent in dims[:ndim] if extent)
        need(max(*dims, offset, elements) < 1 << 63, "an extent, a stride, an offset or their product is too large")
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged("a name is not UTF-8") from error
        spec, itemsize, code = DTYPES[dtype]
        entries.append(Tensor(text, spec, dims[:ndim], dims[ndim:], offset, storage, flags, itemsize, code))
    need(len({entry.name for entry in entries}) == len(entries), "two entries have the same name")
    return entries


def manifest_storages(table: bytes, count: int, version: int) -> list[tuple[int, int, int]]:
    """Size, offset and record of every storage (section 7)."""
    if version == 1:
        need(len(table) == 24 * count, "the storage table has another size than its rows")
        rows = [struct.unpack_from("<2Q2I", table, 24 * n) for n in range(count)]
        need(not any(reserved for *_, reserved in rows), "a reserved field of a storage is not zero")
        return [(nbytes, offset, record) for nbytes, offset, record, _ in rows]
    sizes, at = column(table, 0, count)
    records, at = column(table, at, count)
    need(at == len(table), "the storage table has another size than its columns")
    ends: dict[int, int] = {}
    places = []
    for nbytes, record in zip(sizes, records, strict=True):
        offset = align(ends.get(record, 0), PACK)
        ends[record] = offset + nbytes
        need(ends[record] < 1 << 63, "a storage is too large")
        places.append((nbytes, offset, record))
    return places


def manifest(block: bytes) -> Manifest:
    """A whole manifest block (section 7)."""
    storage_count, entry_count, record_count, *sizes = struct.unpack_from("<7Q", block, 16)
    version = block_version(struct.unpack_from("<H", block, 72)[0])
    need(not any(block[74:96]), "reserved bytes of the manifest are not zero")
    tables, at = [], 96
    for size in sizes:
        begin = align(at, 8)
        need(begin + size <= len(block) - 16 and not any(block[at:begin]), "a table does not end inside the manifest")
        tables.append(block[begin : begin + size])
        at = begin + size
    ends(block, at)
    storages = manifest_storages(tables[0], storage_count, version)
    for *_, number in storages:
        need(number < record_count, "a storage is in a record that does not exist")
    entries = entry_table(tables[1], storage_count, version)
    need(len(entries) == entry_count, "the manifest has another number of entries than its table")
    for entry in entries:
        need(entry.span[1] <= storages[entry.storage][0], f"{entry.name!r} reaches beyond its storage")
    return Manifest(storages, entries, record_count, tables[2], tables[3], block[-16:], len(block), version)


def record(block: bytes, at: int, manifest_digest: bytes | None, storage_count: int | None) -> Record:
    """A whole record header that was found, or belongs, at an offset (section 10)."""
    number, stated, must_understand, offset, *fields, digest = struct.unpack_from("<I2H7Q16s", block, 16)
    version = block_version(stated)
    links = struct.unpack_from("<16s16s", block, 96) if version == 2 else None
    begin_at = 96 if links is None else 128
    raw_size, stored_size, chunk_count, leaf_count, storages, table_size = fields
    need(offset == at, f"the record header belongs at {offset}, not at {at}")
    need(manifest_digest in (None, digest), "the record belongs to another manifest")
    need(must_understand == 0, f"must-understand flags {must_understand:#x} of a record", Unsupported)
    need(chunk_count == align(raw_size, CHUNK) // CHUNK, "the number of chunks does not fit the size")
    need(leaf_count == align(raw_size, LEAF) // LEAF, "the number of leaves does not fit the size")
    leaves_at = begin_at + 24 * chunk_count
    rows_at = leaves_at + 8 * leaf_count
    if links is None:
        table_at = rows_at + 24 * storages
        need(table_at <= len(block) - 16, "the storage rows do not end inside the header")
        rows = [struct.unpack_from("<3Q", block, rows_at + 24 * n) for n in range(storages)]
    else:
        numbers, at_sizes = column(block[:-16], rows_at, storages)
        sizes_of, table_at = column(block[:-16], at_sizes, storages)
        rows, end = [], 0
        for storage, size in zip(numbers, sizes_of, strict=True):
            rows.append((storage, align(end, PACK), size))
            end = align(end, PACK) + size
    ends(block, table_at + table_size)
    chunks = [struct.unpack_from("<Q2IQ", block, begin_at + 24 * n) for n in range(chunk_count)]
    end = 0
    for n, (begin, size, codec, _) in enumerate(chunks):
        raw = min(CHUNK, raw_size - CHUNK * n)
        need(begin == end and 1 <= size <= raw, "the chunks do not follow one another")
        need(codec in (0, 1, 2), f"unknown codec {codec}", Unsupported)
        need((codec == 0) == (size == raw), "a chunk is not encoded and has another size, or the reverse")
        end += size
    need(end == stored_size, "the chunks have another size than the payload")
    end = 0
    for n, (_, begin, size) in enumerate(rows):
        need(n == 0 or rows[n - 1][0] < rows[n][0], "the storages of a record do not ascend")
        need(begin == align(end, PACK), "the storages of a record overlap or leave gaps")
        end = begin + size
    need(end == raw_size, "the storages do not end where the record does")
    entries = entry_table(block[table_at : table_at + table_size], storage_count, version)
    sizes = {storage: size for storage, _, size in rows}
    for entry in entries:
        need(entry.storage in sizes, f"{entry.name!r} is not in this record")
        need(entry.span[1] <= sizes[entry.storage], f"{entry.name!r} reaches beyond its storage")
    leaves = struct.unpack_from(f"<{leaf_count}Q", block, leaves_at)
    sizes_and_rows = (raw_size, stored_size, chunks, leaves, rows, entries)
    return Record(number, at, at + len(block), *sizes_and_rows, block[-16:], version, links)


def decode_chunk(stored: bytes, codec: int, digest: int, raw_size: int) -> bytes:
    """The raw bytes of a chunk, as far as its stored bytes are there."""
    if codec == 0:
        return stored
    need(xxhash.xxh3_64_intdigest(stored) == digest, "an encoded chunk is not what was written")
    if codec == 2:
        try:
            return reference_planes.decode(stored, raw_size)
        except reference_planes.Bad as error:
            raise Damaged("a chunk cannot be decoded") from error
    try:
        parameters = zstandard.get_frame_parameters(stored)
        need(parameters.content_size == raw_size and not parameters.dict_id, "a chunk has another size")
        raw = zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw_size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged("a chunk cannot be decoded") from error
    need(len(raw) == raw_size, "a chunk has another size")
    return raw


def payload(data: bytes, rec: Record) -> tuple[bytes, list[bool]]:
    """The raw bytes of a record, and for each leaf whether it is there and what was written."""
    raw, whole = b"", []
    for n, (begin, size, codec, digest) in enumerate(rec.chunks):
        length = min(CHUNK, rec.raw_size - CHUNK * n)
        try:
            chunk = decode_chunk(data[rec.payload + begin :][:size], codec, digest, length)
        except Damaged:
            chunk = b""
        for at in range(0, length, LEAF):
            leaf = chunk[at : at + LEAF]
            hashed = xxhash.xxh3_64_intdigest(leaf.ljust(LEAF, b"\0"))
            whole.append(len(leaf) == min(LEAF, length - at) and hashed == rec.leaves[len(whole)])
        raw += chunk.ljust(length, b"\0")
    return raw, whole


def attach(data: bytes, rec: Record, entries: list[Tensor]) -> None:
    """Gives every entry of a record whose leaves are whole its memory."""
    raw, whole = payload(data, rec)
    memory = {storage: (begin, raw[begin : begin + size]) for storage, begin, size in rec.storages}
    for entry in entries:
        if entry.storage in memory:
            start, content = memory[entry.storage]
            begin, end = entry.span
            if all(whole[(start + begin) // LEAF : align(start + end, LEAF) // LEAF]) or begin == end:
                entry.memory = content


def either(strict: bool, *attempts: Callable[[], T]) -> T:
    """The first attempt that succeeds; if strict, all of them have to, and with the same result."""
    results: list[T] = []
    failures: list[Damaged] = []
    for attempt in attempts:
        try:
            results.append(attempt())
        except Damaged as failure:
            failures.append(failure)
    if not results or (strict and failures):
        raise failures[0]
    need(not strict or all(result == results[0] for result in results), "two copies differ")
    return results[0]


def read(path: str | Path, strict: bool = True) -> File:
    """Reads a loadable file (section 15), and if strict one without any damage."""
    data = Path(path).read_bytes()
    try:
        record_count, root, sections, version = footer(data)
    except Damaged as error:
        need(data[:8] == SUPERBLOCK, "neither superblock nor footer", NotACheckpoint)
        raise Damaged(f"the file has no whole footer: {error}") from error
    places = {kind: (offset, size, digest) for kind, _, offset, size, digest in sections}

    def section(kind: int, magic: bytes) -> bytes:
        offset, size, digest = places[kind]
        block = sealed(data, offset, magic)
        need(len(block) == size and block[-16:] == digest, f"section {kind} is not the one that the footer names")
        return block

    def by_index() -> list[bytes]:
        block = section(2, INDEX)
        count, reserved = struct.unpack_from("<2Q", block, 16)
        need(reserved == 0 and 32 + 16 * count <= len(block) - 16, "the rows do not end inside the index")
        at, headers = 32 + 16 * count, []
        for n in range(count):
            _, size = struct.unpack_from("<2Q", block, 32 + 16 * n)
            headers.append(sealed(block[:-16], at, RECORD))
            need(len(headers[-1]) == size, "a header in the index has another size than its row")
            at += size
        ends(block, at)
        offsets = [struct.unpack_from("<Q", header, 24) for header in headers]
        need(offsets == [struct.unpack_from("<Q", block, 32 + 16 * n) for n in range(count)], "rows of the index")
        return headers

    def by_place() -> list[bytes]:
        at, headers = PAGE + found.size, []
        for _ in range(found.record_count):
            headers.append(sealed(data, at, RECORD))
            at = record(headers[-1], at, found.digest, None).end
        return headers

    try:
        size, digest, same = superblock(data)
        need((size, digest) == places[1][1:], "superblock and footer name different manifests")
        need(same == version, "superblock and footer state different versions")
    except Damaged:
        if strict:
            raise
    found = manifest(either(strict, lambda: section(3, MANIFEST), lambda: section(1, MANIFEST)))
    need(places[1] == (PAGE, found.size, found.digest) and places[3][1:] == places[1][1:], "manifests differ")
    need(found.version == version, "manifest and footer state different versions")
    need(record_count == found.record_count, "manifest and footer state different numbers of records")
    headers = either(strict, by_index, by_place)
    need(len(headers) == record_count, "manifest and index state different numbers of records")
    digests = b"".join([found.digest, *(header[-16:] for header in headers)])
    need(xxhash.xxh3_128_digest(digests) == root, "the root digest is another one")

    if version == 2:
        try:
            directory = section(7, DIRECTORY)
            rows = [struct.pack("<2Q", *struct.unpack_from("<Q", h, 24), len(h)) + h[-16:] for h in headers]
            need(directory[16:32] == struct.pack("<2Q", len(rows), 0), "the directory has another number of records")
            need(directory[32:].startswith(b"".join(rows)), "the directory names other headers")
            ends(directory, 32 + 32 * len(rows))
        except Damaged:
            if strict:
                raise
    at, records, held = PAGE + found.size, [], {}
    links = (NONE, NONE)
    for number, header in enumerate(headers):
        rec = record(header, at, found.digest, len(found.storages))
        need(rec.number == number and rec.payload + rec.stored_size <= len(data), "a record is not where it belongs")
        need(rec.version == version and rec.links in (None, links), "a record does not follow the one before it")
        links = (rec.digest, links[0])
        need(not strict or not any(data[rec.payload + rec.stored_size : rec.end]), "padding is not zero")
        for storage, begin, size in rec.storages:
            need(storage not in held, f"storage {storage} is in two records")
            held[storage] = (size, begin, number)
        mine = [entry for entry in found.entries if found.storages[entry.storage][2] == number]
        described = [entry.described() for entry in rec.entries]
        agree = [entry.described() for entry in mine] == described
        need(agree or not strict, "manifest and record name different entries")
        at = rec.end
        records.append(rec)
    need(held == dict(enumerate(found.storages)), "manifest and records state different storages")
    kinds = [kind for kind, *_ in sections]
    need(
        not strict or kinds == [1, *sorted(set(kinds) - {1, 2, 3, 7}), 2, *([7] if version == 2 else []), 3],
        "the sections are not in order",
    )
    for kind, _, offset, size, digest in sections[1:]:
        need(offset == at, "the sections do not follow one another")
        at += size
        need(not strict or xxhash.xxh3_128_digest(data[offset : at - 16]) == data[at - 16 : at] == digest, f"{kind}")
    need(at == len(data) - PAGE, "something stands before the footer")

    for rec in records:
        if strict:
            need(all(payload(data, rec)[1]), "leaves are not what was written")
            for n, (_, _, codec, stored_digest) in enumerate(rec.chunks):
                mine = struct.pack(f"<{len(rec.leaves[64 * n : 64 * n + 64])}Q", *rec.leaves[64 * n : 64 * n + 64])
                need(codec != 0 or xxhash.xxh3_64_intdigest(mine) == stored_digest, "a chunk with other leaves")
        attach(data, rec, found.entries)
    need(all(entry.memory is not None for entry in found.entries), "leaves of a tensor are not what was written")
    state, metadata = tree(found.tree, found.entries), tree(found.metadata, [])
    need(type(metadata) is dict, "the metadata is no dict")
    return File(state, metadata, {entry.name: entry for entry in found.entries}, root, records, sections)
