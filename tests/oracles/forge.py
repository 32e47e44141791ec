"""Checkpoint files with wrong fields under right digests.

`forge` takes a whole file apart, lets each of its blocks be changed, and puts it together again: places, sizes and
digests are made to fit first, then the change is made, then the block is sealed. So a reader finds nothing wrong but
the change itself, and only the check that is meant can refuse it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import xxhash

PAGE = 4096
Edit = Callable[[bytearray], "bytearray | None"]
"""Changes a block without its digest, in place or by returning another one."""


def align(number: int, to: int = PAGE) -> int:
    """The smallest multiple of ``to`` that is not below the number."""
    return -(-number // to) * to


def seal(block: bytes | bytearray) -> bytes:
    """A block (without its digest) with its digest."""
    return bytes(block) + xxhash.xxh3_128_digest(bytes(block))


def new_block(magic: bytes, body: bytes) -> bytearray:
    """A block of the right size that is not sealed yet."""
    size = align(16 + len(body) + 16)
    return bytearray((magic + struct.pack("<Q", size) + body).ljust(size - 16, b"\0"))


def put(offset: int, layout: str, *values: object) -> Edit:
    """The edit that writes values at an offset."""

    def edit(block: bytearray) -> None:
        struct.pack_into(layout, block, offset, *values)

    return edit


def column(numbers: Sequence[int]) -> bytes:
    """A column (section 3)."""
    width = next(width for width in (1, 2, 4, 8) if max(numbers, default=0) < 1 << 8 * width)
    return bytes((width,)) + b"".join(number.to_bytes(width, "little") for number in numbers)


def split_column(raw: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Takes a column apart; gives also where it ends."""
    width, end = raw[at], at + 1 + raw[at] * count
    return [int.from_bytes(raw[n : n + width], "little") for n in range(at + 1, end, width)], end


@dataclass
class Entries:
    """An entry table: rows of eight fields, dims and names.

    The fields: storage, dtype, ndim, flags, reserved, storage_offset, size of the name or of what it does not share,
    and how much it shares (reserved in version 1).
    """

    rows: list[list[int]] = field(default_factory=list)
    dims: list[int] = field(default_factory=list)
    names: bytes = b""
    version: int = 2

    @classmethod
    def split(cls, table: bytes, version: int) -> Entries:
        """Takes a table apart."""
        if version == 1:
            count, dims, names = struct.unpack_from("<3Q", table)
            rows = [list(struct.unpack_from("<I4BQ2I", table, 24 + 24 * n)) for n in range(count)]
            numbers = list(struct.unpack_from(f"<{dims}Q", table, 24 + 24 * count))
            return cls(rows, numbers, table[len(table) - names :], 1)
        count, kinds_size, names = struct.unpack_from("<3Q", table)
        kinds, at = [], 24
        while at < 24 + kinds_size:
            dtype, ndim, flags, reserved = table[at : at + 4]
            kinds.append(((dtype, ndim, flags, reserved), struct.unpack_from(f"<{2 * ndim}Q", table, at + 4)))
            at += 4 + 16 * ndim
        columns = []
        for _ in range(5):
            numbers, at = split_column(table, at, count)
            columns.append(numbers)
        rows, all_dims, text, name = [], [], b"", b""
        for kind, storage, offset, shared, rest in zip(*columns, strict=True):
            name = name[:shared] + table[at : at + rest]
            at += rest
            rows.append([storage, *kinds[kind][0], offset, len(name), 0])
            all_dims += kinds[kind][1]
            text += name
        return cls(rows, all_dims, text)

    def join(self) -> bytes:
        """The bytes of the table. Every entry has a kind of its own and shares nothing, unless a row says so."""
        if self.version == 1:
            rows = b"".join(struct.pack("<I4BQ2I", *row) for row in self.rows)
            head = struct.pack("<3Q", len(self.rows), len(self.dims), len(self.names))
            return head + rows + struct.pack(f"<{len(self.dims)}Q", *self.dims) + self.names
        kinds, at = b"", 0
        for row in self.rows:
            own = self.dims[at : at + 2 * row[2]]
            at += 2 * row[2]
            kinds += bytes(row[1:5]) + struct.pack(f"<{len(own)}Q", *own)
        columns = [list(range(len(self.rows))), *([row[n] for row in self.rows] for n in (0, 5, 7, 6))]
        head = struct.pack("<3Q", len(self.rows), len(kinds), len(self.names))
        return head + kinds + b"".join(map(column, columns)) + self.names


@dataclass
class Manifest:
    """The tables of a manifest. Rows of storages: nbytes, offset (which version 2 does not store), record, reserved."""

    storages: list[list[int]]
    entries: Entries
    tree: bytes
    metadata: bytes
    record_count: int
    version: int = 2

    @classmethod
    def split(cls, block: bytes | bytearray) -> Manifest:
        """Takes a block apart."""
        storage_count, _, record_count, *sizes = struct.unpack_from("<7Q", block, 16)
        version = struct.unpack_from("<H", block, 72)[0] or 1
        tables, at = [], 96
        for size in sizes:
            at = align(at, 8)
            tables.append(bytes(block[at : at + size]))
            at += size
        if version == 1:
            rows = [list(struct.unpack_from("<2Q2I", tables[0], 24 * n)) for n in range(storage_count)]
        else:
            nbytes, at = split_column(tables[0], 0, storage_count)
            records, _ = split_column(tables[0], at, storage_count)
            ends: dict[int, int] = {}
            rows = []
            for size, record in zip(nbytes, records, strict=True):
                offset = align(ends.get(record, 0), 64)
                ends[record] = offset + size
                rows.append([size, offset, record, 0])
        return cls(rows, Entries.split(tables[1], version), tables[2], tables[3], record_count, version)

    def join(self) -> bytearray:
        """The block."""
        if self.version == 1:
            rows = b"".join(struct.pack("<2Q2I", *row) for row in self.storages)
        else:
            rows = column([row[0] for row in self.storages]) + column([row[2] for row in self.storages])
        tables = [rows, self.entries.join(), self.tree, self.metadata]
        counts = struct.pack("<3Q", len(self.storages), len(self.entries.rows), self.record_count)
        stated = 0 if self.version == 1 else self.version
        sizes = struct.pack("<4QH22x", *(len(table) for table in tables), stated)
        return new_block(b"FCKPTMAN", counts + sizes + b"".join(t.ljust(align(len(t), 8), b"\0") for t in tables))


@dataclass
class Header:
    """The tables of a record header. ``fixed``: must_understand, header_offset, raw_size, stored_size.

    Rows of storages: number, offset (which version 2 does not store), nbytes.
    """

    number: int
    fixed: list[int]
    chunks: list[list[int]]
    leaves: bytes
    storages: list[list[int]]
    entries: Entries
    manifest_digest: bytes
    links: bytes = bytes(32)
    version: int = 2

    @classmethod
    def split(cls, block: bytes | bytearray) -> Header:
        """Takes a block apart."""
        number, version, flags, offset, raw, stored, chunks, leaves, storages, table, digest = struct.unpack_from(
            "<I2H7Q16s", block, 16
        )
        version = version or 1
        chunks_at = 96 if version == 1 else 128
        leaves_at = chunks_at + 24 * chunks
        rows_at = leaves_at + 8 * leaves
        if version == 1:
            table_at = rows_at + 24 * storages
            rows = [list(struct.unpack_from("<3Q", block, rows_at + 24 * n)) for n in range(storages)]
        else:
            numbers, at = split_column(bytes(block), rows_at, storages)
            nbytes, table_at = split_column(bytes(block), at, storages)
            rows, end = [], 0
            for storage, size in zip(numbers, nbytes, strict=True):
                rows.append([storage, align(end, 64), size])
                end = align(end, 64) + size
        return cls(
            number,
            [flags, offset, raw, stored],
            [list(struct.unpack_from("<Q2IQ", block, chunks_at + 24 * n)) for n in range(chunks)],
            bytes(block[leaves_at:rows_at]),
            rows,
            Entries.split(bytes(block[table_at : table_at + table]), version),
            digest,
            bytes(block[96:128]),
            version,
        )

    def join(self) -> bytearray:
        """The block."""
        table = self.entries.join()
        sizes = (len(self.chunks), len(self.leaves) // 8, len(self.storages), len(table), self.manifest_digest)
        flags, *places = self.fixed
        head = struct.pack("<I2H7Q16s", self.number, 0 if self.version == 1 else 2, flags, *places, *sizes)
        chunks = b"".join(struct.pack("<Q2IQ", *row) for row in self.chunks)
        if self.version == 1:
            storages = b"".join(struct.pack("<3Q", *row) for row in self.storages)
        else:
            head += self.links
            storages = column([row[0] for row in self.storages]) + column([row[2] for row in self.storages])
        return new_block(b"FCKPTREC", head + chunks + self.leaves + storages + table)


def in_manifest(change: Callable[[Manifest], None]) -> Edit:
    """The edit of a manifest by its tables."""

    def edit(block: bytearray) -> bytearray:
        tables = Manifest.split(block)
        change(tables)
        return tables.join()

    return edit


def in_header(change: Callable[[Header], None]) -> Edit:
    """The edit of a record header by its tables."""

    def edit(block: bytearray) -> bytearray:
        tables = Header.split(block)
        change(tables)
        return tables.join()

    return edit


def to_version_1(tables: Manifest | Header) -> None:
    """The same tables, to be written as version 1 writes them."""
    tables.version = tables.entries.version = 1


Extra = tuple[int, int, bytes]
"""Another section: kind, flags, and the whole block."""


def forge(
    data: bytes,
    *,
    superblock: Edit | None = None,
    manifest: Edit | None = None,
    header: Edit | dict[int, Edit] | None = None,
    placed_header: Edit | None = None,
    payload: Callable[[int, bytes], bytes] | None = None,
    padding: bytes = b"\0",
    index: Edit | None = None,
    directory: Edit | None = None,
    footer: Edit | None = None,
    extra: Sequence[Extra] = (),
) -> bytes:
    """A changed file.

    Args:
        data: A whole file without a source section.
        superblock: Edit of the superblock.
        manifest: Edit of the manifest, and so of its copy.
        header: Edit of record headers, by number; or of record 0. The index repeats the result.
        placed_header: Edit of header 0 where it stands, but not in the index.
        payload: Gives the payload of a record, from its number and its payload as it was.
        padding: What fills the space behind payloads.
        index: Edit of the index.
        directory: Edit of the directory, which version 1 does not have.
        footer: Edit of the footer.
        extra: Other sections.
    """

    def made(block: bytes | bytearray, edit: Edit | None) -> bytes:
        changed = bytearray(block)
        return seal((edit(changed) or changed) if edit else changed)

    edits = header if isinstance(header, dict) else {0: header} if header else {}
    (manifest_size,) = struct.unpack_from("<Q", data, PAGE + 8)
    (record_count,) = struct.unpack_from("<Q", data, PAGE + 32)
    sealed_manifest = made(data[PAGE : PAGE + manifest_size - 16], manifest)
    at, records, headers, new_at = PAGE + manifest_size, b"", [], PAGE + len(sealed_manifest)
    for number in range(record_count):
        (size,) = struct.unpack_from("<Q", data, at + 8)
        (stored,) = struct.unpack_from("<Q", data, at + 40)
        block = bytearray(data[at : at + size - 16])
        content = data[at + size : at + size + stored]
        at = align(at + size + stored)
        struct.pack_into("<Q", block, 24, new_at)
        block[80:96] = sealed_manifest[-16:]
        if block[20]:  # Version 2 names the headers of the two records before.
            block[96:128] = b"".join(made[-16:] for _, made in headers[:-3:-1]).ljust(32, b"\0")
        sealed_header = made(block, edits.get(number))
        headers.append((new_at, sealed_header))
        content = payload(number, content) if payload else content
        in_place = made(sealed_header[:-16], placed_header) if number == 0 else sealed_header
        records += in_place + content
        new_at = PAGE + len(sealed_manifest) + align(len(records))
        records += padding * (align(len(records)) - len(records))
    rows = b"".join(struct.pack("<2Q", offset, len(block)) for offset, block in headers)
    body = struct.pack("<2Q", len(headers), 0) + rows + b"".join(block for _, block in headers)
    sealed_index = made(new_block(b"FCKPTIDX", body), index)
    sections: list[Extra] = [*extra, (2, 1, sealed_index), (3, 1, sealed_manifest)]
    if sealed_manifest[72]:
        places = b"".join(struct.pack("<2Q", offset, len(block)) + block[-16:] for offset, block in headers)
        named = made(new_block(b"FCKPTDIR", struct.pack("<2Q", len(headers), 0) + places), directory)
        sections.insert(-1, (7, 1, named))
    listed, tail = [struct.pack("<2I2Q16s", 1, 1, PAGE, len(sealed_manifest), sealed_manifest[-16:])], b""
    for kind, flags, block in sections:
        listed.append(struct.pack("<2I2Q16s", kind, flags, new_at + len(tail), len(block), block[-16:]))
        tail += block
    root = xxhash.xxh3_128_digest(sealed_manifest[-16:] + b"".join(block[-16:] for _, block in headers))
    last = bytearray(data[-PAGE:-16])
    struct.pack_into("<2Q16s2I", last, 40, new_at + len(tail) + PAGE, record_count, root, len(listed), 0)
    last[80:] = b"".join(listed).ljust(PAGE - 96, b"\0")
    first = bytearray(data[: PAGE - 16])
    last[16] = first[16] = sealed_manifest[72] or 1
    struct.pack_into("<Q16s", first, 64, len(sealed_manifest), sealed_manifest[-16:])
    return made(first, superblock) + sealed_manifest + records + tail + made(last, footer)


def as_version_1(data: bytes) -> bytes:
    """The same content as a file of version 1."""
    (count,) = struct.unpack_from("<Q", data, PAGE + 32)
    return forge(
        data, manifest=in_manifest(to_version_1), header={number: in_header(to_version_1) for number in range(count)}
    )
