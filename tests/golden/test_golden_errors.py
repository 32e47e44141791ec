"""Files that are whole by all digests and must be refused nonetheless, for one field each.

`forge` seals every change, so no digest stands in for the check that is meant. Each file must be refused with the
right error, at once, without memory for what it only claims to hold; the reference reader must agree.
"""

from __future__ import annotations

import resource
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import xxhash
import zstandard
from slowness import within

torch = pytest.importorskip("torch")

from forge import Entries, Extra, Header, Manifest, as_version_1, forge, in_header, in_manifest, new_block, put, seal  # noqa: E402
from reference_reader import read  # noqa: E402
from reference_tree import Damaged, NotACheckpoint, Refused, Unsupported  # noqa: E402

import fastckpt  # noqa: E402
from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError, UnsupportedVersionError  # noqa: E402

HUGE = (1 << 64) - 1
LARGE = 1 << 60
SLACK = 256 << 20
"""Address space a refusal may take besides: stacks of threads and the like. The claims below are far beyond."""


class Bases(NamedTuple):
    """Whole files that the cases change, all of one version of the format."""

    small: bytes
    """Two tensors in one pack."""
    two: bytes
    """Two records of their own with the same content, then a pack."""
    zstd: bytes
    """One encoded chunk."""
    raw: bytes
    """A payload of 1 MiB and a bit: two chunks."""


@pytest.fixture
def version(request: pytest.FixtureRequest) -> int:
    """The version of the format that a case is about."""
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def all_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bases]:
    """The files to change, by version. Each is used once, as imports and thread pools are not what is measured."""
    path = tmp_path_factory.mktemp("bases") / "f.fckpt"
    made = {version: make_bases(version, path) for version in (1, 2)}
    for bases in made.values():
        for data in bases:
            path.write_bytes(data)
            fastckpt.load(path)
            assert fastckpt.verify(path).ok
            read(path)
    return made


@pytest.fixture
def bases(version: int, all_bases: dict[int, Bases]) -> Bases:
    """The files to change of the version that a case is about."""
    return all_bases[version]


def make_bases(version: int, path: Path) -> Bases:
    def saved(state: Any, codec: str = "none") -> bytes:
        fastckpt.save(state, path, codec=codec, durable=False)
        data = path.read_bytes()
        return data if version == 2 else as_version_1(data)

    zeros = torch.zeros(262144, dtype=torch.uint8)
    return Bases(
        saved({"w": torch.tensor([1.0, -2.0, 0.5, 3.0]), "b": torch.tensor([1, 2, 3])}),
        saved({"a": zeros, "b": zeros.clone(), "c": torch.tensor([7])}),
        saved({"a": zeros}, "zstd"),
        saved({"a": torch.arange(1048576 + 5000).to(torch.uint8)}),
    )


# --- changes -------------------------------------------------------------------------------------------------------


def entries(change: Callable[[Entries], None]) -> dict[str, Any]:
    """The same change of the entries in the manifest and in the header of record 0."""
    return {
        "manifest": in_manifest(lambda manifest: change(manifest.entries)),
        "header": in_header(lambda header: change(header.entries)),
    }


def entry(column: int, value: int, row: int = 0) -> dict[str, Any]:
    """One field of one entry."""

    def change(table: Entries) -> None:
        table.rows[row][column] = value

    return entries(change)


def dims(*values: int) -> dict[str, Any]:
    """Shape and stride of the first entry."""

    def change(table: Entries) -> None:
        table.dims[: 2 * table.rows[0][2]] = values
        table.rows[0][2] = len(values) // 2

    return entries(change)


def named(*names: bytes, shared: int = 0) -> dict[str, Any]:
    """The names of the entries; how much the last one shares with the one before it."""

    def change(table: Entries) -> None:
        table.names = b"".join(names)
        for row, name in zip(table.rows, names, strict=True):
            row[6] = len(name)
        if shared:
            table.rows[-1][7] = shared

    return entries(change)


def tree(encoded: bytes) -> dict[str, Any]:
    """Another tree."""

    def change(manifest: Manifest) -> None:
        manifest.tree = encoded

    return {"manifest": in_manifest(change)}


def metadata(encoded: bytes) -> dict[str, Any]:
    """Another metadata tree."""

    def change(manifest: Manifest) -> None:
        manifest.metadata = encoded

    return {"manifest": in_manifest(change)}


def manifest(change: Callable[[Manifest], object]) -> dict[str, Any]:
    """A change of the manifest's tables."""
    return {"manifest": in_manifest(lambda tables: change(tables) and None)}


def header(change: Callable[[Header], object]) -> dict[str, Any]:
    """A change of the tables of header 0."""
    return {"header": in_header(lambda tables: change(tables) and None)}


def assign(rows: list[list[int]], row: int, column: int, value: int) -> None:
    """Sets one field of one row."""
    rows[row][column] = value


def storage(row: int, column: int, value: int) -> dict[str, Any]:
    """One field of a storage row in manifest and header: nbytes 0, offset 1."""

    def in_both(tables: Manifest) -> None:
        tables.storages[row][column] = value

    return {
        "manifest": in_manifest(in_both),
        "header": in_header(lambda tables: assign(tables.storages, row, {0: 2, 1: 1}[column], value)),
    }


def frame(stored: Callable[[bytes], bytes], digest: Callable[[bytes], int] = xxhash.xxh3_64_intdigest) -> Any:
    """Another stored chunk in an encoded record, with sizes and stored digest that fit."""

    def apply(data: bytes) -> bytes:
        kept: list[bytes] = []
        forge(data, payload=lambda _, content: kept.append(content) or content)  # type: ignore[func-returns-value]
        made = stored(kept[0])

        def change(tables: Header) -> None:
            tables.fixed[3] = len(made)
            tables.chunks = [[0, len(made), 1, digest(made)]]

        return forge(data, payload=lambda *_: made, header=in_header(change))

    return apply


def section(kind: int, flags: int, block: bytes | None = None) -> Extra:
    """Another section."""
    return kind, flags, block if block is not None else seal(new_block(b"FCKPTNEW", b"what only a later version knows"))


def overlap(data: bytes) -> bytes:
    """Record 1 is said to stand where record 0 does. Their content is the same, so all leaves fit."""
    first = []

    def remember(block: bytearray) -> None:
        first.extend(struct.unpack_from("<Q", block, 24))

    def move(block: bytearray) -> None:
        struct.pack_into("<Q", block, 24, first[0])

    def row(block: bytearray) -> None:
        struct.pack_into("<Q", block, 32 + 16, first[0])

    return forge(data, header={0: remember, 1: move}, index=row)


def many_claims(data: bytes) -> bytes:
    """200 headers in the index for one payload: 50 MiB of tensors in a file of 2 MiB."""
    copies = 200
    manifest_size, at = struct.unpack_from("<Q", data, 4104)[0], 4096
    block = Manifest.split(data[at : at + manifest_size - 16])
    header_at = at + manifest_size
    (header_size,) = struct.unpack_from("<Q", data, header_at + 8)
    one = Header.split(data[header_at : header_at + header_size - 16])
    rows = one.entries.rows[0]
    block.storages = [[262144, 0, n, 0] for n in range(copies)]
    block.record_count = copies
    block.entries.rows = [[n, *rows[1:6], 8, 0] for n in range(copies)]
    block.entries.dims = one.entries.dims * copies
    block.entries.names = b"".join(b"%08d" % n for n in range(copies))
    block.tree = b"\x08" + bytes((copies & 127 | 128, copies >> 7)) + b"".join(
        b"\x0c" + (bytes((n,)) if n < 128 else bytes((n & 127 | 128, n >> 7))) for n in range(copies)
    )  # fmt: skip
    sealed_manifest = seal(block.join())
    one.fixed[1] = 4096 + len(sealed_manifest)
    one.manifest_digest = sealed_manifest[-16:]
    headers = []
    for n in range(copies):
        one.number, one.storages = n, [[n, 0, 262144]]
        one.entries = Entries([[n, *rows[1:6], 8, 0]], one.entries.dims, b"%08d" % n, one.version)
        headers.append(seal(one.join()))
    index_rows = b"".join(struct.pack("<2Q", one.fixed[1], len(made)) for made in headers)
    index = seal(new_block(b"FCKPTIDX", struct.pack("<2Q", copies, 0) + index_rows + b"".join(headers)))
    payload = data[header_at + header_size :][:262144]
    index_at = one.fixed[1] + len(headers[0]) + len(payload)
    size = index_at + len(index) + len(sealed_manifest) + 4096
    root = xxhash.xxh3_128_digest(sealed_manifest[-16:] + b"".join(made[-16:] for made in headers))
    footer = bytearray(data[-4096:-16])
    struct.pack_into("<2Q16s", footer, 40, size, copies, root)
    for n, (offset, part) in enumerate(
        [(4096, sealed_manifest), (index_at, index), (index_at + len(index), sealed_manifest)]
    ):
        struct.pack_into("<2Q16s", footer, 88 + 40 * n, offset, len(part), part[-16:])
    superblock = bytearray(data[:4080])
    struct.pack_into("<Q16s", superblock, 64, len(sealed_manifest), sealed_manifest[-16:])
    return b"".join((seal(superblock), sealed_manifest, headers[0], payload, index, sealed_manifest, seal(footer)))


def resized(block: bytearray) -> bytearray:
    """A block that is one page larger than its body."""
    (size,) = struct.unpack_from("<Q", block, 8)
    struct.pack_into("<Q", block, 8, size + 4096)
    return block + bytes(4096)


class Case(NamedTuple):
    """A change and the error it must give."""

    name: str
    base: str
    change: dict[str, Any] | Callable[[bytes], bytes]
    error: type[FastckptError]
    versions: tuple[int, ...] = (1, 2)


def unsupported(name: str, change: Any, base: str = "small", versions: tuple[int, ...] = (1, 2)) -> Case:
    return Case(name, base, change, UnsupportedVersionError, versions)


def broken(name: str, change: Any, base: str = "small", versions: tuple[int, ...] = (1, 2)) -> Case:
    return Case(name, base, change, DamagedError, versions)


V1, V2 = (1,), (2,)


# Entry columns: 0 storage, 1 dtype, 2 ndim, 3 flags, 4 reserved, 5 storage_offset, 6 name_size, 7 reserved
CASES = [
    unsupported("superblock: version 3", {"superblock": put(16, "<H", 3)}),
    unsupported("superblock: version 0", {"superblock": put(16, "<H", 0)}),
    unsupported("superblock: must understand", {"superblock": put(24, "<Q", 1)}),
    unsupported("superblock: must understand, highest bit", {"superblock": put(24, "<Q", 1 << 63)}),
    unsupported("superblock: leaf size", {"superblock": put(40, "<I", 32768)}),
    unsupported("superblock: chunk size", {"superblock": put(44, "<I", 0)}),
    unsupported("superblock: alignment", {"superblock": put(48, "<I", 512)}),
    unsupported("superblock: pack alignment", {"superblock": put(52, "<I", 128)}),
    unsupported("superblock: reserved", {"superblock": put(18, "<H", 1)}),
    unsupported("footer: version 3", {"footer": put(16, "<H", 3)}),
    unsupported("footer: version 1", {"footer": put(16, "<H", 1)}, versions=V2),
    broken("footer: version 2", {"footer": put(16, "<H", 2)}, versions=V1),
    unsupported("manifest: version 3", {"manifest": put(72, "<H", 3)}),
    unsupported("record: version 3", {"header": put(20, "<H", 3)}),
    broken("record: another one before it", {"header": {1: put(96, "<Q", 1)}}, "two", V2),
    broken("record: another one two before it", {"header": {2: put(112, "<Q", 1)}}, "two", V2),
    broken("record: one before the first", {"header": put(96, "<Q", 1)}, versions=V2),
    unsupported("footer: must understand", {"footer": put(24, "<Q", 2)}),
    unsupported("footer: reserved", {"footer": put(20, "<I", 1)}),
    unsupported("section: unknown, must be understood", {"extra": [section(99, 1)]}),
    unsupported("section: parity, must be understood", {"extra": [section(5, 1)]}),
    broken("footer: file size", {"footer": put(40, "<Q", 4096)}),
    broken("footer: file size beyond", {"footer": put(40, "<Q", HUGE)}),
    broken("footer: record count", {"footer": put(48, "<Q", LARGE)}),
    broken("footer: no records", {"footer": put(48, "<Q", 0)}),
    broken("footer: root", {"footer": put(56, "<Q", 1)}),
    broken("footer: 101 sections", {"footer": put(72, "<I", 101)}),
    broken("footer: 2^32 - 1 sections", {"footer": put(72, "<I", 0xFFFFFFFF)}),
    broken("footer: 2 sections", {"footer": put(72, "<I", 2)}),
    broken("footer: reserved field", {"footer": put(76, "<I", 1)}),
    broken("footer: tail", {"footer": put(4000, "<I", 1)}),
    broken("footer: index named twice", {"footer": put(160, "<I", 2)}),
    broken("footer: section not aligned", {"footer": put(168, "<Q", 4097)}),
    broken("footer: section beyond the file", {"footer": put(128, "<Q", 1 << 40)}),
    broken("footer: sum of offset and size overflows", {"footer": put(128, "<2Q", (1 << 64) - 4096, 8192)}),
    broken("footer: two manifests", {"footer": put(184, "<Q", 5)}, versions=V1),
    broken("footer: two manifests, version 2", {"footer": put(224, "<Q", 5)}, versions=V2),
    broken("manifest: storage count", {"manifest": put(16, "<Q", LARGE)}),
    broken("manifest: storage count overflows", {"manifest": put(16, "<Q", (1 << 64) // 8)}),
    broken("manifest: entry count", {"manifest": put(24, "<Q", LARGE)}),
    broken("manifest: record count", {"manifest": put(32, "<Q", LARGE)}),
    broken("manifest: size of the storage table", {"manifest": put(40, "<Q", HUGE)}),
    broken("manifest: size of the entry table", {"manifest": put(48, "<Q", HUGE - 200)}),
    broken("manifest: size of the tree", {"manifest": put(56, "<Q", LARGE)}),
    broken("manifest: size of the metadata", {"manifest": put(64, "<Q", 1 << 31)}),
    broken("manifest: reserved", {"manifest": put(80, "<B", 1)}),
    broken("manifest: tail", {"manifest": put(4079, "<B", 1)}),
    broken("manifest: record of a storage", manifest(lambda m: assign(m.storages, 0, 2, 1))),
    broken("manifest: record of a storage, highest", manifest(lambda m: assign(m.storages, 0, 2, 0xFFFFFFFF))),
    broken("manifest: reserved field of a storage", manifest(lambda m: assign(m.storages, 0, 3, 1)), versions=V1),
    broken("manifest: size of a storage", manifest(lambda m: assign(m.storages, 0, 0, LARGE))),
    broken("manifest: offset of a storage", manifest(lambda m: assign(m.storages, 1, 1, 128)), versions=V1),
    broken("manifest: storage in no record", manifest(lambda m: m.storages.append([8, 0, 0, 0]))),
    broken("manifest: storage missing", manifest(lambda m: m.storages.pop())),
    broken("manifest: zeros between tables", {"manifest": put(0x60 + 48 + 24 + 48 + 32 + 2, "<B", 1)}, versions=V1),
    broken("manifest: zeros between tables, version 2", {"manifest": put(0x60 + 7, "<B", 1)}, versions=V2),
    broken("manifest: width of a column", {"manifest": put(0x60, "<B", 3)}, versions=V2),
    broken("manifest: no width of a column", {"manifest": put(0x60, "<B", 0)}, versions=V2),
    broken("manifest: wider column", {"manifest": put(0x60, "<B", 8)}, versions=V2),
    broken("entries: count", {"manifest": put(0x60 + 48, "<Q", LARGE)}, versions=V1),
    broken("entries: dims count", {"manifest": put(0x60 + 48 + 8, "<Q", 1 << 61)}, versions=V1),
    broken("entries: names size", {"manifest": put(0x60 + 48 + 16, "<Q", HUGE)}, versions=V1),
    broken("entries: count, version 2", {"manifest": put(0x68, "<Q", LARGE)}, versions=V2),
    broken("entries: size of the kinds", {"manifest": put(0x68 + 8, "<Q", HUGE)}, versions=V2),
    broken("entries: a kind is cut", {"manifest": put(0x68 + 8, "<Q", 21)}, versions=V2),
    broken("entries: names size, version 2", {"manifest": put(0x68 + 16, "<Q", HUGE)}, versions=V2),
    broken("entries: kind", {"manifest": put(0x68 + 24 + 20 + 1, "<B", 2)}, versions=V2),
    broken("entries: shares with nothing before", entry(7, 1), versions=V2),
    broken("entries: shares more than there is", entry(7, 2, row=1), versions=V2),
    broken("entries: shares more than 63", named(b"x" * 64, b"b", shared=64), versions=V2),
    broken("entries: size of a name", entry(6, 0xFFFFFFFF)),
    broken("entries: storage", entry(0, 2)),
    broken("entries: storage, highest", entry(0, 0xFFFFFFFF)),
    broken("entries: fewer dims", entry(2, 0), versions=V1),
    broken("entries: 65 dims", dims(*[1] * 130)),
    broken("entries: 255 dims", dims(*[1] * 510)),
    broken("entries: beyond the storage", dims(5, 1)),
    broken("entries: offset beyond the storage", entry(5, 1)),
    broken("entries: offset 2^64 - 1", entry(5, HUGE)),
    broken("entries: offset overflows", entry(5, (1 << 62) - 1)),
    broken("entries: extent 2^64 - 1", dims(HUGE, 1)),
    broken("entries: extent overflows", dims((1 << 62) + 1, 4)),
    broken("entries: extent of 2^63, stride 0", dims(1 << 63, 0)),
    broken("entries: stride of 2^63", dims(1, 1 << 63)),
    broken("entries: stride overflows", dims(3, (1 << 63) - 1)),
    broken("entries: more elements than 63 bits", dims(1 << 62, 1 << 62, 0, 0)),
    broken("entries: empty, extent of 2^63", dims(0, 1 << 63, 1, 1)),
    broken("entries: name twice", named(b"same", b"same")),
    broken("entries: name not UTF-8", named(b"\xff\xfe", b"b")),
    broken("entries: name with a surrogate", named(b"\xed\xa0\x80", b"b")),
    broken("entries: name cut inside a letter", named(b"\xc3", b"\xbc")),
    unsupported("entries: unknown dtype", entry(1, 99)),
    unsupported("entries: dtype 0", entry(1, 0)),
    unsupported("entries: unknown flag", entry(3, 16)),
    unsupported("entries: reserved", entry(4, 1)),
    unsupported("entries: second reserved", entry(7, 1), versions=V1),
    broken("entries: an integer that requires grad", entry(3, 1, row=1)),
    broken("entries: an integer parameter that requires grad", entry(3, 3, row=1)),
    unsupported("tree: unknown tag", tree(b"\x11")),
    broken("tree: named value without a name", tree(b"\x10")),
    broken("tree: named value without a payload", tree(b"\x10\x03set")),
    broken("tree: name not UTF-8", tree(b"\x10\x01\xff\x00")),
    unsupported("tree: unknown name", tree(b"\x10\x03sat\x08\x00")),
    broken("tree: name of 2^56", tree(b"\x10" + b"\x80" * 8 + b"\x01")),
    broken("tree: another payload", tree(b"\x10\x03set\x09\x00")),
    broken("tree: payload with another part", tree(b"\x10\x08fraction\x09\x02\x03\x01\x01\x02")),
    broken("tree: array of no entry", tree(b"\x10\x05array\x09\x04\x0c\x02\x06\x03<f4\x0e\x00\x01")),
    broken("tree: array without a tensor", tree(b"\x10\x05array\x09\x04\x00\x06\x03<f4\x0e\x00\x01")),
    broken("tree: deep named values", tree(b"\x10\x03a.b" * 1000 + b"\x00")),
    unsupported("tree: unknown tag 255", tree(b"\x08\x01\xff")),
    unsupported("tree: unknown dtype", tree(b"\x0d\x63")),
    broken("tree: nothing", tree(b"")),
    broken("tree: cut", tree(b"\x08\x02\x00")),
    broken("tree: something behind", tree(b"\x00\x00")),
    broken("tree: list of 2^63", tree(b"\x08" + b"\x80" * 9 + b"\x01")),
    broken("tree: tuple of 2^62", tree(b"\x09" + b"\x80" * 8 + b"\x40")),
    broken("tree: dict of 2^28", tree(b"\x0a\x80\x80\x80\x80\x01")),
    broken("tree: ordered dict of 2^28", tree(b"\x0b\x80\x80\x80\x80\x01")),
    broken("tree: size of 2^28", tree(b"\x0e\x80\x80\x80\x80\x01")),
    broken("tree: text of 2^56", tree(b"\x06" + b"\x80" * 8 + b"\x01")),
    broken("tree: bytes of 2^40", tree(b"\x07\x80\x80\x80\x80\x80\x20")),
    broken("tree: int of 2^40 bytes", tree(b"\x03\x80\x80\x80\x80\x80\x20")),
    broken("tree: number of 11 bytes", tree(b"\x08" + b"\x80" * 10 + b"\x00")),
    broken("tree: number of more than 64 bits", tree(b"\x08" + b"\xff" * 9 + b"\x02")),
    broken("tree: extent of 2^63", tree(b"\x0e\x01" + b"\x80" * 9 + b"\x01")),
    broken("tree: depth 129", tree(b"\x08\x01" * 129 + b"\x00")),
    broken("tree: depth 100,000", tree(b"\x08\x01" * 100_000 + b"\x00")),
    broken("tree: deep dicts", tree(b"\x0a\x01\x06\x00" * 100_000 + b"\x00")),
    broken("tree: deep keys", tree(b"\x0a\x01" * 1000 + b"\x00")),
    broken("tree: deep attributes", tree(b"\x0b\x00" * 1000 + b"\x00")),
    broken("tree: entry", tree(b"\x0c\x02")),
    broken("tree: entry 2^64 - 1", tree(b"\x0c" + b"\xff" * 9 + b"\x01")),
    broken("tree: key twice", tree(b"\x0a\x02\x06\x01k\x00\x06\x01k\x00")),
    broken("tree: int key twice", tree(b"\x0a\x02\x03\x01\x05\x00\x03\x02\x05\x00\x00")),
    broken("tree: float key", tree(b"\x0a\x01\x04" + bytes(8) + b"\x00")),
    broken("tree: bool key", tree(b"\x0a\x01\x02\x00")),
    broken("tree: list key", tree(b"\x0a\x01\x08\x00\x00")),
    broken("tree: int key of 257 bytes", tree(b"\x0a\x01\x03\x81\x02" + b"\x7f" * 257 + b"\x00")),
    broken("tree: text not UTF-8", tree(b"\x06\x02\xc3\x28")),
    broken("tree: text with a surrogate", tree(b"\x06\x03\xed\xa0\x80")),
    broken("tree: key not UTF-8", tree(b"\x0a\x01\x06\x01\xff\x00")),
    broken("tree: device not UTF-8", tree(b"\x0f\x01\xff")),
    broken("tree: attributes are a list", tree(b"\x0b\x00\x08\x00")),
    broken("tree: attributes with an int key", tree(b"\x0b\x00\x0a\x01\x03\x01\x05\x00")),
    unsupported("record: must understand", {"header": put(20, "<I", 1)}),
    unsupported("record: must understand, highest bit", {"header": put(20, "<I", 1 << 31)}),
    broken("record: number", {"header": put(16, "<I", 1)}),
    broken("record: offset", {"header": put(24, "<Q", 4096)}),
    broken("record: offset not aligned", {"header": put(24, "<Q", 8193)}),
    broken("record: offset 2^64 - 4096", {"header": put(24, "<Q", (1 << 64) - 4096)}),
    broken("record: raw size", {"header": put(32, "<Q", 1 << 50)}),
    broken("record: raw size 2^64 - 1", {"header": put(32, "<Q", HUGE)}),
    broken("record: stored size", {"header": put(40, "<Q", 1 << 50)}),
    broken("record: stored size 2^64 - 1", {"header": put(40, "<Q", HUGE)}),
    broken("record: chunk count", {"header": put(48, "<Q", LARGE)}),
    broken("record: leaf count", {"header": put(56, "<Q", LARGE)}),
    broken("record: no leaves", {"header": put(56, "<Q", 0)}),
    broken("record: storage count", {"header": put(64, "<Q", LARGE)}),
    broken("record: storage count overflows", {"header": put(64, "<Q", (1 << 64) // 8)}),
    broken("record: size of the entry table", {"header": put(72, "<Q", HUGE)}),
    broken("record: other manifest", {"header": put(80, "<Q", 1)}),
    broken("record: tail", {"header": put(4079, "<B", 1)}),
    broken("chunk: offset", header(lambda h: assign(h.chunks, 0, 0, 1))),
    broken("chunk: offset of the second", header(lambda h: assign(h.chunks, 1, 0, 0)), "raw"),
    broken("chunk: nothing stored", header(lambda h: assign(h.chunks, 0, 1, 0))),
    broken("chunk: more stored", header(lambda h: assign(h.chunks, 0, 1, 0xFFFFFFFF))),
    broken("chunk: encoded at its raw size", header(lambda h: assign(h.chunks, 0, 2, 1))),
    broken("chunk: not encoded, smaller", header(lambda h: assign(h.chunks, 0, 2, 0)), "zstd"),
    unsupported("chunk: codec 3", header(lambda h: assign(h.chunks, 0, 2, 3)), "zstd"),
    broken("chunk: planes that are a frame", header(lambda h: assign(h.chunks, 0, 2, 2)), "zstd"),
    unsupported("chunk: codec 2^32 - 1", header(lambda h: assign(h.chunks, 0, 2, 0xFFFFFFFF)), "zstd"),
    broken("chunk: stored digest", header(lambda h: assign(h.chunks, 0, 3, 0)), "zstd"),
    broken("chunk: leaf digest", header(lambda h: setattr(h, "leaves", bytes(8)))),
    broken("chunk: leaf digest of an encoded one", header(lambda h: setattr(h, "leaves", bytes(128))), "zstd"),
    broken("chunk: no frame", frame(lambda _: b"nothing"), "zstd"),
    broken("chunk: cut frame", frame(lambda content: content[:-1]), "zstd"),
    broken("chunk: something behind the frame", frame(lambda content: content + b"x"), "zstd"),
    broken("chunk: two frames", frame(lambda content: content * 2), "zstd"),
    broken("chunk: larger frame", frame(lambda _: zstandard.compress(bytes(64 << 20))), "zstd"),
    broken("chunk: smaller frame", frame(lambda _: zstandard.compress(bytes(262143))), "zstd"),
    broken(
        "chunk: frame without its size",
        frame(lambda _: zstandard.ZstdCompressor(write_content_size=False).compress(bytes(262144))),
        "zstd",
    ),
    broken("storages: overlap", storage(1, 1, 0), versions=V1),
    broken("storages: gap", storage(1, 1, 128), versions=V1),
    broken("storages: not aligned", storage(1, 1, 16), versions=V1),
    broken("storages: first not at 0", storage(0, 1, 64), versions=V1),
    broken("storages: size", storage(1, 0, LARGE)),
    broken("storages: size 2^64 - 1", storage(0, 0, HUGE)),
    broken("storages: order", header(lambda h: h.storages.reverse())),
    broken("storages: twice", header(lambda h: assign(h.storages, 1, 0, 0))),
    broken("storages: unknown", header(lambda h: assign(h.storages, 1, 0, HUGE))),
    broken("storages: missing", header(lambda h: h.storages.pop())),
    broken("records: overlap", overlap, "two"),
    broken("records: 200 on one payload", many_claims, "two", V1),
    broken("file: cut", lambda data: data[:-4096]),
    broken("file: cut inside a page", lambda data: data[:-1]),
    broken("file: first page alone", lambda data: data[:4096]),
    broken("file: something behind", lambda data: data + bytes(4096)),
    broken("file: footer is zero", lambda data: data[:-4096] + bytes(4096)),
    broken("file: first bytes alone", lambda data: data[:8]),
    Case("file: nothing", "small", lambda _: b"", NotACheckpointError),
    Case("file: one byte", "small", lambda data: data[:1], NotACheckpointError),
    Case("file: zeros", "small", lambda data: bytes(len(data)), NotACheckpointError),
    Case("file: without head and foot", "small", lambda data: data[4096:-4096], NotACheckpointError),
    Case("file: text", "small", lambda _: b"Lorem ipsum " * 5000, NotACheckpointError),
]
"""Files that no reader may load."""

COPY = [
    Case("superblock: manifest elsewhere", "small", {"superblock": put(56, "<Q", 8192)}, DamagedError),
    Case("superblock: other manifest", "small", {"superblock": put(72, "<Q", 1)}, DamagedError),
    Case("superblock: size of the manifest", "small", {"superblock": put(64, "<Q", HUGE)}, DamagedError),
    Case("superblock: tail", "small", {"superblock": put(4000, "<Q", 1)}, DamagedError),
    Case("superblock: zeros", "small", lambda data: bytes(4096) + data[4096:], DamagedError),
    Case("padding", "small", {"padding": b"\1"}, DamagedError),
    Case("index: record count", "small", {"index": put(16, "<Q", LARGE)}, DamagedError),
    Case("index: no records", "small", {"index": put(16, "<Q", 0)}, DamagedError),
    Case("index: reserved", "small", {"index": put(24, "<Q", 1)}, DamagedError),
    Case("index: offset", "small", {"index": put(32, "<Q", 4096)}, DamagedError),
    Case("index: size of a header", "small", {"index": put(40, "<Q", HUGE)}, DamagedError),
    Case("index: tail", "small", {"index": put(8100, "<B", 1)}, DamagedError),
    Case("superblock: version 1", "small", {"superblock": put(16, "<H", 1)}, DamagedError, V2),
    Case("superblock: version 2", "small", {"superblock": put(16, "<H", 2)}, DamagedError, V1),
    Case("directory: record count", "small", {"directory": put(16, "<Q", LARGE)}, DamagedError, V2),
    Case("directory: no records", "small", {"directory": put(16, "<Q", 0)}, DamagedError, V2),
    Case("directory: reserved", "small", {"directory": put(24, "<Q", 1)}, DamagedError, V2),
    Case("directory: offset", "small", {"directory": put(32, "<Q", 4096)}, DamagedError, V2),
    Case("directory: size of a header", "small", {"directory": put(40, "<Q", HUGE)}, DamagedError, V2),
    Case("directory: digest", "small", {"directory": put(48, "<Q", 1)}, DamagedError, V2),
    Case("directory: tail", "small", {"directory": put(4000, "<B", 1)}, DamagedError, V2),
    Case("record: another header in the index", "small", {"placed_header": put(4000, "<B", 1)}, DamagedError),
    Case(
        "chunk: digest of a raw one", "small", header(lambda h: assign(h.chunks, 0, 3, 0)), DamagedError
    ),
    Case("section: damaged source", "small", {"extra": [section(4, 0, bytes(4096))]}, DamagedError),
    Case("section: damaged unknown", "small", {"extra": [section(77, 0, bytes(4096))]}, DamagedError),
    Case("entries: other names in the header", "small",
         header(lambda h: setattr(h.entries, "names", b"xy")), DamagedError),
    Case("entries: other shape in the header", "small",
         header(lambda h: h.entries.dims.__setitem__(0, 3)), DamagedError),
    broken("metadata: no dict", metadata(b"\x00")),
    broken("metadata: ordered dict", metadata(b"\x0b\x00\x00")),
    broken("metadata: tensor", metadata(b"\x0a\x01\x06\x01k\x0c\x00")),
    broken("metadata: cut", metadata(b"\x0a\x01\x06")),
    broken("metadata: nothing", metadata(b"")),
    Case("footer: sections in another order", "small", {"extra": [section(98, 0), section(97, 0)]}, DamagedError),
]  # fmt: skip
"""Files that a reader may load, for another copy or no tensor is concerned; a verifier must find the change."""

FINE = [
    Case("superblock: may ignore", "small", {"superblock": put(32, "<Q", 1)}, FastckptError),
    Case("footer: may ignore", "small", {"footer": put(32, "<Q", HUGE)}, FastckptError),
    Case("section: unknown, may be ignored", "small", {"extra": [section(99, 0)]}, FastckptError),
    Case("section: unused flags", "small", {"extra": [section(99, 0xFFFFFFFE)]}, FastckptError),
    Case("section: given up, may be ignored", "small", {"extra": [section(6, 0)]}, FastckptError),
    Case("manifest: larger than it needs to be", "small", {"manifest": resized}, FastckptError),
    Case("record: header larger than it needs to be", "small", {"header": resized}, FastckptError),
    Case("index: larger than it needs to be", "small", {"index": resized}, FastckptError),
    Case("directory: larger than it needs to be", "small", {"directory": resized}, FastckptError, V2),
    Case("entries: a shared name", "small", named(b"ab", b"c", shared=1), FastckptError, V2),
    Case("tree: long numbers", "small", tree(b"\x08\x82" + b"\x80" * 8 + b"\x00\x00\x0c\x81\x00"), FastckptError),
    Case("tree: long int", "small", tree(b"\x08\x02\x03\x00\x03\x04\xfe\xff\xff\xff"), FastckptError),
    Case("tree: entry used twice", "small", tree(b"\x09\x02\x0c\x01\x0c\x01"), FastckptError),
    Case("tree: int key of 256 bytes", "small", tree(b"\x0a\x01\x03\x80\x02" + b"\x7f" * 256 + b"\x00"), FastckptError),
    Case("tree: depth 128", "small", tree(b"\x08\x01" * 128 + b"\x00"), FastckptError),
    Case("entries: empty name", "small", named(b"", b"b"), FastckptError),
    Case("entries: many elements on one", "small", dims((1 << 61) - 1, 0), FastckptError),
    Case("entries: conjugate of a real number", "small", entry(3, 4), FastckptError),
    Case("entries: empty, far away", "small", dims(0, 1 << 40, 7, 1 << 40), FastckptError),
]
"""Files that every reader must load."""


def each(cases: list[Case]) -> Any:
    """Every case in every version of the format that has it."""
    pairs = [pytest.param(n, case, id=f"v{n}: {case.name}") for n in (1, 2) for case in cases if n in case.versions]
    return pytest.mark.parametrize(("version", "case"), pairs, indirect=["version"])


# --- checks --------------------------------------------------------------------------------------------------------


def build(case: Case, bases: Bases, tmp_path: Path) -> Path:
    """Writes the file of a case."""
    data = getattr(bases, case.base)
    path = tmp_path / "forged.fckpt"
    path.write_bytes(case.change(data) if callable(case.change) else forge(data, **case.change))
    return path


@contextmanager
def frugal(path: Path) -> Iterator[None]:
    """Fails when what is inside takes long, or memory out of proportion to the file."""
    with Path("/proc/self/statm").open() as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    resource.setrlimit(resource.RLIMIT_AS, (used + SLACK, before[1]))
    started = time.process_time()
    try:
        yield
    finally:
        seconds = time.process_time() - started
        resource.setrlimit(resource.RLIMIT_AS, before)
        _, peak = tracemalloc.get_traced_memory()
        if not tracing:
            tracemalloc.stop()
    assert within(seconds, 1)
    assert peak < 4 * path.stat().st_size + (1 << 20)


REFUSALS = {UnsupportedVersionError: Unsupported, DamagedError: Damaged, NotACheckpointError: NotACheckpoint}


@pytest.mark.sampled(8)
@each(CASES)
def test_load_refuses(case: Case, bases: Bases, tmp_path: Path) -> None:
    path = build(case, bases, tmp_path)
    for mmap in (False, True):
        with frugal(path), pytest.raises(FastckptError) as caught:
            fastckpt.load(path, mmap=mmap)
        assert type(caught.value) is case.error, caught.value
        assert caught.value.path == str(path)


@pytest.mark.sampled(8)
@each(CASES)
def test_verify_reports_or_refuses(case: Case, bases: Bases, tmp_path: Path) -> None:
    path = build(case, bases, tmp_path)
    with frugal(path):
        try:
            report = fastckpt.verify(path)
        except (UnsupportedVersionError, NotACheckpointError) as error:
            assert type(error) is case.error  # noqa: PT017
        else:
            # Records tell what it was also where nothing at either end does.
            assert case.error is DamagedError or case.name == "file: without head and foot"
            assert not report.ok
            assert report.exit_code


@pytest.mark.sampled(8)
@each([*CASES, *COPY, *FINE])
def test_verify_without_the_footer_reports_or_refuses(case: Case, bases: Bases, tmp_path: Path) -> None:
    path = build(case, bases, tmp_path)
    if case.name == "file: something behind":
        return  # without its last page that file is whole
    path.write_bytes(path.read_bytes()[:-4096])
    with frugal(path), suppress(UnsupportedVersionError, NotACheckpointError):
        assert not fastckpt.verify(path).ok
    with pytest.raises(FastckptError):
        fastckpt.load(path)


@pytest.mark.sampled(8)
@each(CASES)
def test_reference_reader_refuses(case: Case, bases: Bases, tmp_path: Path) -> None:
    path = build(case, bases, tmp_path)
    for strict in (True, False):
        with pytest.raises(Refused) as caught:
            read(path, strict)
        assert type(caught.value) is REFUSALS[case.error], caught.value


@pytest.mark.sampled(8)
@each(CASES)
def test_open_hands_out_nothing_or_raises_a_typed_error(case: Case, bases: Bases, tmp_path: Path) -> None:
    path = build(case, bases, tmp_path)
    failed = 0
    with frugal(path):
        try:
            with fastckpt.open(path) as opened:
                for name in opened:
                    try:
                        opened[name]
                    except FastckptError:
                        failed += 1
                        break
                opened.metadata  # noqa: B018
                opened.tree()
        except FastckptError:
            failed += 1
    assert failed


@each(COPY)
def test_verify_finds_what_a_reader_need_not(case: Case, bases: Bases, tmp_path: Path) -> None:
    path = build(case, bases, tmp_path)
    with frugal(path):
        state = fastckpt.load(path)
        report = fastckpt.verify(path)
    assert state["w"].tolist() == [1.0, -2.0, 0.5, 3.0]
    assert not report.ok
    assert report.exit_code == (2 if case.name.startswith("metadata") else 1)
    if case.name.startswith("metadata"):  # a load does not look at it, whoever asks for it does
        with fastckpt.open(path) as opened, pytest.raises(DamagedError):
            opened.metadata  # noqa: B018
    else:
        assert read(path, strict=False).tensors["w"].array.tolist() == [1.0, -2.0, 0.5, 3.0]
    with pytest.raises(Damaged):
        read(path)


@each(FINE)
def test_what_must_be_ignored_or_accepted(case: Case, bases: Bases, tmp_path: Path) -> None:
    path = build(case, bases, tmp_path)
    with frugal(path):
        fastckpt.load(path)
        fastckpt.load(path, mmap=True)
        assert fastckpt.verify(path).ok
    read(path)
