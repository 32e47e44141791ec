"""What is fuzzed: each target takes any bytes and ends in a result that holds, or in a typed error."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash

import fastckpt
from fastckpt import _core
from fastckpt.constants import (
    ALIGNMENT,
    MAGIC_DIRECTORY,
    MAGIC_FOOTER,
    MAGIC_INDEX,
    MAGIC_MANIFEST,
    MAGIC_PARITY,
    MAGIC_PARITY_PAGE,
    MAGIC_RECORD,
    MAGIC_SOURCE,
    MAGIC_SUPERBLOCK,
)
from fastckpt.errors import FastckptError
from fastckpt.fckpt.remains import scan
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.torch_state import read_state
from fastckpt.foreign.zip_records import read_archives
from fastckpt.io.source import Source
from fastckpt.layout.blocks import align
from fastckpt.layout.directory import decode_directory
from fastckpt.layout.entries import check_entry
from fastckpt.layout.frame import decode_footer, decode_index, decode_superblock
from fastckpt.layout.manifest import decode_manifest
from fastckpt.layout.records import decode_record_header
from fastckpt.layout.tree import decode_tree, walk_tree
from fastckpt.sealing.check import check
from fastckpt.seals.names import sums_path
from fastckpt.seals.sums import read_sums
from fastckpt.stored.verify import verify
from fastckpt.tensor.rebuild import resolve_tree

MAGICS = (
    MAGIC_SUPERBLOCK,
    MAGIC_MANIFEST,
    MAGIC_RECORD,
    MAGIC_INDEX,
    MAGIC_DIRECTORY,
    MAGIC_FOOTER,
    MAGIC_SOURCE,
    MAGIC_PARITY,
    MAGIC_PARITY_PAGE,
)


class Target(NamedTuple):
    """One target.

    Attributes:
        run: Gives the result for some bytes as a short text, or raises.
        tokens: Pieces that a change puts in now and then.
    """

    run: Callable[[bytes], str]
    tokens: tuple[bytes, ...] = ()


class _Files:
    """One file in memory for all inputs."""

    def __init__(self) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = tempfile.TemporaryDirectory(dir=base, prefix="fastckpt-fuzz-")

    def holding(self, data: bytes, name: str = "input") -> Path:
        path = Path(self.directory.name) / name
        path.write_bytes(data)
        return path


_FILES = _Files()


@contextlib.contextmanager
def _typed(said: list[str]) -> Iterator[None]:
    """Lets typed errors pass, and notes them."""
    try:
        yield
    except FastckptError as error:
        str(error)  # Made of all its fields: that must work as well.
        said.append(f"{type(error).__name__}: {error.message}")


def _salvage(path: Path, said: list[str]) -> None:
    with _typed(said):
        report = fastckpt.salvage(path, threads=1)
        size = path.stat().st_size
        for fate in report.tensors.values():
            assert 0 <= fate.present <= fate.nbytes
            if fate.status.value in ("intact", "unverified") and fate.offset is not None and fate.nbytes:
                assert 0 <= fate.offset < size
        said += [f"{finding.kind.value}: {finding.message}" for finding in report.findings[:5]]
        said.append(f"{report.format} {report.structure} {report.exit_code}")


def _repair(path: Path, said: list[str]) -> None:
    """What is called healed is whole by its own checksums, and what is to be healed stays as it is."""
    before, healed = path.read_bytes(), path.with_name("healed.fckpt")
    with _typed(said):
        report = fastckpt.repair(path, healed, durable=False, threads=1)
        said.append(report.state)
        if report.state == "healed":
            assert verify(healed, threads=1).ok
    assert path.read_bytes() == before
    for left in path.parent.glob("healed.fckpt*"):
        left.unlink()


def run_pickle(data: bytes) -> str:
    """The pickle machine."""
    said: list[str] = []
    with _typed(said):
        state, end = read_state(data)
        assert 0 < end <= len(data)
        sizes = [storage.nbytes for storage in state.storages]
        for entry in state.entries:
            check_entry(entry, sizes)
        said.append(f"{len(state.entries) > 0} {len(state.opaque) > 0} {sorted({e.dtype for e in state.entries})}")
    return " | ".join(said)


def run_zip(data: bytes) -> str:
    """The records of a zip archive, and the search for them in a damaged one."""
    said: list[str] = []
    path = _FILES.holding(data, "input.pt")
    with _typed(said), Source(os.fspath(path)) as source:
        ends = 0
        records = [record for archive in read_archives(source) for record in archive.records.values()]
        for record in sorted(records, key=lambda record: record.offset):
            assert ends <= record.offset
            ends = record.offset + record.size
            assert ends <= len(data)
    with _typed(said), Source(os.fspath(path)) as source:
        open_foreign(source)
    _salvage(path, said)
    return " | ".join(said)


def run_foreign(data: bytes, suffix: str = "") -> str:
    """A file of another format, whole or damaged. Where its beginning tells nothing, its suffix does."""
    said: list[str] = []
    path = _FILES.holding(data, f"input{suffix}")
    with _typed(said), Source(os.fspath(path)) as source:
        file = open_foreign(source)
        for storage in file.storages:
            assert 0 <= storage.offset <= storage.offset + storage.nbytes <= file.size
        sizes = [storage.nbytes for storage in file.storages]
        for entry in file.entries:
            check_entry(entry, sizes)
        said.append(f"{file.kind} {len(file.entries) > 0}")
    with _typed(said):
        verify(path, threads=1)
    _salvage(path, said)
    return " | ".join(said)


def sealed(body: bytes) -> bytes:
    """A sealed block from its magic and body: size and digest are made to fit."""
    size = align(len(body) + 16)
    block = body[:8] + struct.pack("<Q", size) + body[16:].ljust(size - 32, b"\0")
    return block + xxhash.xxh3_128_digest(block)


def run_blocks(data: bytes) -> str:
    """What is behind the digest of a block: any body, with a digest that matches. All decoders see it."""
    said: list[str] = []
    if len(data) < 16:
        return "short"
    for magic in MAGICS[:-1] if data[:8] not in MAGICS else (data[:8],):
        block = sealed(magic + data[8:])
        with _typed(said):
            if magic == MAGIC_SUPERBLOCK:
                decode_superblock(block)
            elif magic == MAGIC_MANIFEST:
                manifest = decode_manifest(block)
                entries = manifest.checked_entries()
                list(walk_tree(decode_tree(manifest.tree, len(entries))))
                assert isinstance(manifest.metadata, dict)
            elif magic == MAGIC_RECORD:
                record = decode_record_header(block, limit=2**40)
                assert record.payload.end <= 2**40
                for entry in record.entries:
                    assert entry.name is not None
                assert sum(chunk.stored_size for chunk in record.chunks) == record.stored_size
            elif magic == MAGIC_INDEX:
                for _, header in decode_index(block):
                    with contextlib.suppress(FastckptError):
                        decode_record_header(header, limit=2**63)
            elif magic == MAGIC_DIRECTORY:
                decode_directory(block)
            elif magic == MAGIC_FOOTER:
                decode_footer(block, file_size=struct.unpack_from("<Q", block, 40)[0])
            said.append("decoded")
    return " | ".join(said)


def run_tree(data: bytes) -> str:
    """The nesting of a state."""
    said: list[str] = []
    with _typed(said):
        decoded = decode_tree(data, 3)
        said.append(str(len(list(walk_tree(decoded)))))
        tensors = [torch.zeros(4), torch.zeros(3, 2).t(), torch.zeros(24, dtype=torch.uint8)]
        resolve_tree(decoded, lambda ref: tensors[ref.entry])
        said.append("built")
    return " | ".join(said)


def resealed(data: bytes) -> bytes:
    """The same file with digests that match: every block, and the root, as far as they can be found."""
    file = bytearray(data)
    # From the end: the pages of a parity section are blocks in a block.
    for at in reversed(range(0, len(file) - 31, ALIGNMENT)):
        if bytes(file[at : at + 8]) not in MAGICS:
            continue
        (size,) = struct.unpack_from("<Q", file, at + 8)
        if size % ALIGNMENT or not ALIGNMENT <= size <= len(file) - at:
            continue
        inner = at + 32
        if bytes(file[at : at + 8]) == MAGIC_INDEX:
            # The headers in it are blocks as well.
            while (inner := file.find(MAGIC_RECORD, inner, at + size)) >= 0:
                (length,) = struct.unpack_from("<Q", file, inner + 8)
                if 32 <= length <= at + size - inner:
                    file[inner + length - 16 : inner + length] = xxhash.xxh3_128_digest(
                        file[inner : inner + length - 16]
                    )
                inner += 8
        file[at + size - 16 : at + size] = xxhash.xxh3_128_digest(file[at : at + size - 16])
    return bytes(file)


def run_fckpt(data: bytes) -> str:
    """A whole file: scanned, verified, loaded, salvaged and repaired; as it is, and with digests that match.

    The first byte chooses. Zeros at the end of a page need not be in the input: see `unpacked`.
    """
    said: list[str] = []
    if not data:
        return "short"
    file = unpacked(data[1:])
    path = _FILES.holding(resealed(file) if data[0] & 1 else file, "input.fckpt")
    with _typed(said), Source(os.fspath(path)) as source:
        remains = scan(source, threads=1)
        said.append(f"{len(remains.records)} {remains.manifest is not None}")
    with _typed(said):
        fastckpt.load(path, threads=1, mmap=bool(data[0] & 2))
        said.append("loaded")
    with _typed(said):
        verify(path, threads=1)
    _salvage(path, said)
    _repair(path, said)
    return " | ".join(said)


def packed(file: bytes) -> bytes:
    """The pages of a file, each with its size and without the zeros at its end."""
    pages = []
    for at in range(0, len(file), ALIGNMENT):
        page = file[at : at + ALIGNMENT]
        kept = page[:-16].rstrip(b"\0")
        if any(page[-16:]) and len(page) == ALIGNMENT:
            pages.append(struct.pack("<H", 0x8000 | len(kept)) + kept + page[-16:])
        else:
            kept = page.rstrip(b"\0")
            pages.append(struct.pack("<H", len(kept)) + kept)
    return b"".join(pages)


def unpacked(data: bytes) -> bytes:
    """The file that `packed` was given, at most 1 MiB; any other bytes are some file too."""
    pages = []
    at = 0
    while at + 2 <= len(data) and len(pages) < 256:
        (head,) = struct.unpack_from("<H", data, at)
        size = min(head & 0x7FFF, ALIGNMENT)
        page = data[at + 2 : at + 2 + size]
        at += 2 + size
        if head & 0x8000:
            page = page[: ALIGNMENT - 16].ljust(ALIGNMENT - 16, b"\0") + data[at : at + 16].ljust(16, b"\0")
            at += 16
        pages.append(page.ljust(ALIGNMENT, b"\0"))
    return b"".join(pages)


_PICKLE_TOKENS = tuple(
    [
        bytes((code,))
        for code in b"(.0123456789}])lteaubsKMJGXhjqrQRciNC\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x94\x93\x95\x97"
    ]
    + [
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"cos\nsystem\n",
        b"\x8a\xff" + b"\x7f" * 8,
        b"X\xff\xff\xff\x7f",
        b"B\xff\xff\xff\xff",
        b"r\xff\xff\xff\xff",
        b"(" * 60,
        b"]" * 60,
        b"\x86" * 30,
        b"2" * 30,
    ]
)
_ZIP_TOKENS = (
    b"PK\x03\x04",
    b"PK\x07\x08",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"archive/data/0",
    b"archive/data.pkl",
    b"\xff\xff\xff\xff",
    b"\x01\x00\x10\x00",
)
_JSON_TOKENS = (
    b"[" * 40,
    b'{"a":' * 40,
    b'"data_offsets":[0,4]',
    b'"dtype":"F32"',
    b'"shape":[]',
    b'"shape":[-1]',
    b"1e999",
    b"9" * 30,
    b"null",
    b"NaN",
    b"\\ud800",
    b'"__metadata__":{}',
    b"\x00\x00\x00\x00\x00\x00\x00\x80",
)


def run_tar(data: bytes) -> str:
    """A tar file of torch whose headers have the right sums."""
    whole = bytearray(data)
    for at in range(0, len(whole) - 511, 512):
        block = whole[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            whole[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return run_foreign(bytes(whole), ".pth")


def _sealed_file() -> bytes:
    """A .safetensors of three leaves."""
    rows = {f"w{n}": {"dtype": "U8", "shape": [17_000], "data_offsets": [n * 17_000, (n + 1) * 17_000]} for n in (0, 1)}
    header = json.dumps(rows).encode()
    return struct.pack("<Q", len(header)) + header + bytes(range(250)) * 136


SEALED = _sealed_file()


def run_sums(data: bytes) -> str:
    """The sums file of a .safetensors; as it is, and with digests that match. The first byte chooses."""
    said: list[str] = []
    if not data:
        return "short"
    sums = unpacked(data[1:])
    path = _FILES.holding(SEALED, "sealed.safetensors")
    _FILES.holding(resealed(sums) if data[0] & 1 else sums, "sealed.safetensors.fckpt-sums")
    found = check(path, threads=1)
    said.append(found.state)
    if found.state == "OK":
        digests = read_sums(sums_path(path), threads=1).digests
        assert bytes(digests) == _core.leaf_digests(SEALED)
    with _typed(said):
        report = verify(path, threads=1)
        assert (report.seal == "as sealed") == (found.state == "OK")
        said.append(f"{report.seal}")
    with _typed(said):
        fastckpt.load(path, threads=1, mmap=bool(data[0] & 2))
        assert found.state == "OK"
    _salvage(path, said)
    with _typed(said):
        fastckpt.seal(path, durable=False, threads=1)
    return " | ".join(said)


TARGETS: dict[str, Target] = {
    "pickle": Target(run_pickle, _PICKLE_TOKENS),
    "zip": Target(run_zip, _ZIP_TOKENS),
    "safetensors": Target(partial(run_foreign, suffix=".safetensors"), _JSON_TOKENS),
    "legacy": Target(partial(run_foreign, suffix=".pt"), _PICKLE_TOKENS),
    "tar": Target(run_tar, (*_PICKLE_TOKENS, b"FloatTensor\n", b"FloatStorage\n")),
    "blocks": Target(run_blocks, tuple(MAGICS)),
    "tree": Target(run_tree, (*(bytes((tag,)) for tag in range(17)), b"\xff" * 9 + b"\x01", b"\x08\x01" * 70)),
    "fckpt": Target(run_fckpt, tuple(MAGICS)),
    "sums": Target(run_sums, (b"seal", b"digests", b"tensors", b"leaf", b"\x03\x08" + b"\xff" * 7 + b"\x7f", *MAGICS)),
}
