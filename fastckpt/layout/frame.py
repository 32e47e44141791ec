"""The frame around the records: superblock, index and footer.

The superblock says what the file is and where the manifest stands. The footer
is written last: it says where everything else lies and carries the root
digest, and only a file that has it may be loaded. The index repeats every
record header, byte for byte, in one place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash

from fastckpt.constants import (
    ALIGNMENT,
    CHUNK_SIZE,
    FOOTER_SIZE,
    FORMAT_VERSION,
    KNOWN_MUST_UNDERSTAND_FLAGS,
    LEAF_SIZE,
    MAGIC_FOOTER,
    MAGIC_INDEX,
    MAGIC_SUPERBLOCK,
    MAX_SECTIONS,
    PACK_ALIGNMENT,
    SECTION_DIRECTORY,
    SECTION_FLAG_MUST_UNDERSTAND,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
    SECTION_SOURCE,
    SUPERBLOCK_SIZE,
)
from fastckpt.errors import DamagedError, NotACheckpointError, UnsupportedVersionError
from fastckpt.layout.blocks import Extent, require_zero, seal, sealed_size, unseal

_VERSION: Final = struct.Struct("<HHIQQ")
_SUPERBLOCK: Final = struct.Struct("<IIIIQQ16s")
_FOOTER: Final = struct.Struct("<QQ16sII")
_SECTION: Final = struct.Struct("<IIQQ16s")
_INDEX_HEAD: Final = struct.Struct("<QQ")
_INDEX_ROW: Final = struct.Struct("<QQ")
_REQUIRED: Final = {
    1: (SECTION_MANIFEST, SECTION_INDEX, SECTION_MANIFEST_COPY),
    2: (SECTION_MANIFEST, SECTION_INDEX, SECTION_DIRECTORY, SECTION_MANIFEST_COPY),
}
"""Sections that stand in a file exactly once, by the version of the format."""


class Section(NamedTuple):
    """A sealed block that the footer names.

    Attributes:
        kind: SECTION_* number.
        flags: SECTION_FLAG_* bits.
        extent: Where it lies.
        digest: The digest it ends with.
    """

    kind: int
    flags: int
    extent: Extent
    digest: bytes


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the first 4 KiB say: where the manifest stands and the digest it ends with."""

    manifest: Extent
    manifest_digest: bytes
    version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Footer:
    """What the last 4 KiB say.

    Attributes:
        file_size: Length the whole file must have.
        record_count: How many records it holds.
        root: The 16-byte root digest, which identifies the content.
        sections: Manifest, index, manifest copy and whatever else there is.
        version: The version of the format it is written in.
    """

    file_size: int
    record_count: int
    root: bytes
    sections: tuple[Section, ...]
    version: int = FORMAT_VERSION

    def section(self, kind: int) -> Section | None:
        """The section of this kind, if there is one."""
        return next((section for section in self.sections if section.kind == kind), None)


def root_digest(manifest_digest: bytes, header_digests: Sequence[bytes]) -> bytes:
    """The root digest: XXH3-128 of the manifest digest and all record header digests in order."""
    return xxhash.xxh3_128_digest(manifest_digest + b"".join(header_digests))


def _version_fields() -> bytes:
    return _VERSION.pack(FORMAT_VERSION, 0, 0, 0, 0)


def _check_version(body: memoryview) -> int:
    version, zero, zero2, must_understand, _may_ignore = _VERSION.unpack_from(body)
    if version not in _REQUIRED:
        raise UnsupportedVersionError(
            "this file has a format version that this fastckpt does not read",
            expected=f"1 to {FORMAT_VERSION}",
            actual=version,
            next_step="pip install --upgrade fastckpt",
        )
    unknown = must_understand & ~KNOWN_MUST_UNDERSTAND_FLAGS
    if unknown or zero or zero2:
        raise UnsupportedVersionError(
            "this file uses must-understand features that this fastckpt does not know",
            actual=f"flags {unknown:#x}",
            next_step="pip install --upgrade fastckpt",
        )
    return int(version)


def encode_superblock(manifest: Extent, manifest_digest: bytes) -> bytes:
    """The first 4 KiB of a file."""
    fields = _SUPERBLOCK.pack(LEAF_SIZE, CHUNK_SIZE, ALIGNMENT, PACK_ALIGNMENT, *manifest, manifest_digest)
    return seal(MAGIC_SUPERBLOCK, _version_fields(), fields)


def decode_superblock(block: bytes) -> Superblock:
    """Decode the first 4 KiB of a file.

    Raises:
        NotACheckpointError: It does not begin with the magic.
        UnsupportedVersionError: A later version or unknown must-understand flags.
        DamagedError: The digest does not match, or a field cannot be.
    """
    if block[: len(MAGIC_SUPERBLOCK)] != MAGIC_SUPERBLOCK:
        raise NotACheckpointError("this is not a .fckpt file", expected=MAGIC_SUPERBLOCK, actual=bytes(block[:8]))
    body = unseal(block, MAGIC_SUPERBLOCK, what="superblock")
    version = _check_version(body)
    leaf, chunk, alignment, pack_alignment, offset, size, digest = _SUPERBLOCK.unpack_from(body, _VERSION.size)
    if (leaf, chunk, alignment, pack_alignment) != (LEAF_SIZE, CHUNK_SIZE, ALIGNMENT, PACK_ALIGNMENT):
        raise UnsupportedVersionError(
            "leaf, chunk or alignment sizes are not those of this format",
            expected=(LEAF_SIZE, CHUNK_SIZE, ALIGNMENT, PACK_ALIGNMENT),
            actual=(leaf, chunk, alignment, pack_alignment),
        )
    require_zero(body[_VERSION.size + _SUPERBLOCK.size :], what="padding of the superblock")
    if offset != SUPERBLOCK_SIZE:
        raise DamagedError("the manifest does not follow the superblock", expected=SUPERBLOCK_SIZE, actual=offset)
    return Superblock(Extent(offset, size), digest, version)


def index_size(header_sizes: Sequence[int]) -> int:
    """Size in bytes of the index of records with headers of these sizes."""
    return sealed_size(_INDEX_HEAD.size + len(header_sizes) * _INDEX_ROW.size + sum(header_sizes))


def encode_index(headers: Sequence[tuple[int, bytes]]) -> bytes:
    """The sealed index from ``(offset, header block)`` of every record."""
    return seal(
        MAGIC_INDEX,
        _INDEX_HEAD.pack(len(headers), 0),
        b"".join(_INDEX_ROW.pack(offset, len(block)) for offset, block in headers),
        *(block for _, block in headers),
    )


def decode_index(block: bytes) -> list[tuple[int, memoryview]]:
    """``(offset, header block)`` of every record.

    Raises:
        DamagedError: The digest does not match, or sizes do not add up.
    """
    body = unseal(block, MAGIC_INDEX, what="index")
    count, zero = _INDEX_HEAD.unpack_from(body)
    at = _INDEX_HEAD.size + count * _INDEX_ROW.size
    if zero or at > len(body):
        raise DamagedError("the index announces more records than fit in it", actual=count)
    headers = []
    for offset, size in _INDEX_ROW.iter_unpack(body[_INDEX_HEAD.size : at]):
        if size > len(body) - at:
            raise DamagedError("a header in the index reaches beyond it", expected=len(body) - at, actual=size)
        headers.append((offset, body[at : at + size]))
        at += size
    require_zero(body[at:], what="padding of the index")
    return headers


def encode_footer(footer: Footer) -> bytes:
    """The last 4 KiB of a file."""
    rows = b"".join(_SECTION.pack(s.kind, s.flags, *s.extent, s.digest) for s in footer.sections)
    head = _FOOTER.pack(footer.file_size, footer.record_count, footer.root, len(footer.sections), 0)
    return seal(MAGIC_FOOTER, _version_fields(), head, rows)


def decode_footer(block: bytes, *, file_size: int) -> Footer:
    """Decode the last 4 KiB of a file of ``file_size`` bytes.

    Raises:
        DamagedError: There is no whole footer here, or it belongs to a file of another length.
        UnsupportedVersionError: A later version, unknown must-understand flags or sections.
    """
    body = unseal(block, MAGIC_FOOTER, what="footer")
    version = _check_version(body)
    size, record_count, root, section_count, zero = _FOOTER.unpack_from(body, _VERSION.size)
    if size != file_size:
        raise DamagedError("the file does not have the length its footer states", expected=size, actual=file_size)
    if section_count > MAX_SECTIONS or zero:
        raise DamagedError(
            "the footer announces more sections than fit in it", expected=MAX_SECTIONS, actual=section_count
        )
    start = _VERSION.size + _FOOTER.size
    end = start + section_count * _SECTION.size
    sections = []
    for kind, flags, offset, length, digest in _SECTION.iter_unpack(body[start:end]):
        if kind not in (*_REQUIRED[version], SECTION_SOURCE) and flags & SECTION_FLAG_MUST_UNDERSTAND:
            raise UnsupportedVersionError(
                f"this file has a section of kind {kind} that must be understood",
                next_step="pip install --upgrade fastckpt",
            )
        if offset % ALIGNMENT or length % ALIGNMENT or offset + length > file_size - FOOTER_SIZE:
            raise DamagedError(f"a section of kind {kind} reaches beyond the file", offset=offset, actual=length)
        sections.append(Section(kind, flags, Extent(offset, length), digest))
    require_zero(body[end:], what="padding of the footer")
    for needed in _REQUIRED[version]:
        if sum(section.kind == needed for section in sections) != 1:
            raise DamagedError(f"the footer does not name exactly one section of kind {needed}")
    if len({s.digest for s in sections if s.kind in (SECTION_MANIFEST, SECTION_MANIFEST_COPY)}) != 1:
        raise DamagedError("the footer names two different manifests")
    return Footer(size, record_count, root, tuple(sections), version)


def stated_file_size(block: bytes) -> int:
    """The length of the file that a footer was written for. Raises DamagedError if it is not whole."""
    body = unseal(block, MAGIC_FOOTER, what="footer")
    return int(_FOOTER.unpack_from(body, _VERSION.size)[0])
