"""What is left of a ``.fckpt`` file, whatever happened to it: SPEC.md, section 16.

The manifest stands at both ends. Records are found one after the other, by
the header in place or its mirror in the index, and where neither is whole by
scanning multiples of 4 KiB. A header counts only if its digest matches, it
states the place where it was found, and it names this file's manifest: that
tells it from a header inside some tensor's bytes.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from fastckpt import _core
from fastckpt.constants import (
    ALIGNMENT,
    FOOTER_SIZE,
    MAGIC_FOOTER,
    MAGIC_INDEX,
    MAGIC_MANIFEST,
    MAGIC_RECORD,
    RECORD_FIXED_SIZE,
    SECTION_DIRECTORY,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
    SUPERBLOCK_SIZE,
)
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, NotACheckpointError, UnsupportedVersionError
from fastckpt.findings import Finding, Kind
from fastckpt.io.source import Source
from fastckpt.io.unreadable import read_there
from fastckpt.layout.blocks import PROLOGUE_SIZE, Extent, align, block_digest, read_prologue, unseal
from fastckpt.layout.directory import decode_directory
from fastckpt.layout.frame import Footer, Superblock, decode_footer, decode_index, decode_superblock, root_digest
from fastckpt.layout.manifest import Manifest, decode_manifest
from fastckpt.layout.records import Record, decode_record_header

MAX_BLOCK: Final = 256 * 1024 * 1024
"""Bytes of a block that is still looked at: the manifest of some millions of
tensors, the index of some 200 GB."""

MAX_CUT_INDEX: Final = 64 * 1024 * 1024
"""Bytes looked at of an index whose end is not known: the file ends before it, or its length is damaged."""

MAX_MIRRORS: Final = 4
"""Different headers for one place that are tried: the payload may be of any of the saves they are from."""

_RECORD_HEAD: Final = struct.Struct("<8sQ8xQ48x16s")
"""Magic, size, header_offset and manifest_digest of a record header."""


@dataclass(slots=True)
class Remains:
    """What stands in a damaged file.

    Attributes:
        manifest: The first manifest that is whole, if any.
        records: The records whose header or its mirror is whole, by number. Their payload may be cut.
        alternates: Other whole headers for the place of a record: mirrors that differ from it.
        footer: The footer, if it is whole and at the end.
        findings: What is not as written in the frame: blocks, headers. Nothing about payloads.
        named: Whether the footer proves which headers are those of the file; then there are no others in ``records``.
        anchored: Whether any block stands where it belongs; copies of headers in the index do not count.
    """

    manifest: Manifest | None = None
    records: dict[int, Record] = field(default_factory=dict)
    alternates: dict[int, list[Record]] = field(default_factory=dict)
    footer: Footer | None = None
    findings: list[Finding] = field(default_factory=list)
    named: bool = False
    anchored: bool = False


def read_block(source: Source, offset: int, magic: bytes, *, what: str) -> bytes:
    """The bytes of the sealed block at ``offset``, not yet unsealed. Raises DamagedError if none begins there."""
    limit = source.size - offset
    size = read_prologue(source.read(offset, min(PROLOGUE_SIZE, max(limit, 0))), magic, what=what, limit=limit)
    if size > MAX_BLOCK:
        raise DamagedError(f"the {what} is too long", offset=offset, expected=f"at most {MAX_BLOCK}", actual=size)
    return source.read(offset, size)


Find = Callable[[bytes, int], list[int]]
"""Takes a magic and an offset; gives the multiples of 4 KiB from there on at which the magic stands."""


def scan(source: Source, *, threads: int, find: Find | None = None) -> Remains:
    """Find the manifest and the records of a file, whatever of it is damaged; ``find`` finds blocks by their magic.

    Raises:
        UnsupportedVersionError: A whole superblock or footer says that it needs a newer fastckpt.
    """
    return _Scan(source, threads, find).run()


def find_alternates(source: Source, remains: Remains, *, threads: int) -> None:
    """Look for the mirrors of headers behind the last record, where no footer says where they are."""
    start = max((record.end for record in remains.records.values()), default=source.size)
    mirrors = _Scan(source, threads).found_mirrors(start, None)
    for number, record in remains.records.items():
        others = [
            mirror
            for mirror in mirrors.get(record.header.offset, [])
            if mirror.digest != record.digest and mirror.manifest_digest == record.manifest_digest
        ]
        if others:
            remains.alternates.setdefault(number, others)


class _Scan:
    """One search; the order of its steps is that of SPEC.md, 16.2."""

    def __init__(self, source: Source, threads: int, find: Find | None = None) -> None:
        self.source = source
        self.threads = threads
        self.find = find or self.find_in_file
        self.remains = Remains()
        self.named: dict[int, bytes] | None = None
        # Reading what turns out to be no header takes time; a hostile file could ask for that again and again.
        self.budget = 2 * source.size + MAX_BLOCK

    def run(self) -> Remains:
        superblock = self.read_superblock()
        footer = self.remains.footer = self.read_footer()
        digest: bytes | None = None
        start = SUPERBLOCK_SIZE
        if superblock is not None:
            digest, start = superblock.manifest_digest, superblock.manifest.end
        if footer is not None:
            section = footer.section(SECTION_MANIFEST)
            assert section is not None
            digest, start = section.digest, section.extent.end
            self.named = self.named_headers(footer)
            self.remains.named = self.named is not None
        found = self.manifest_at(SUPERBLOCK_SIZE, digest, report=True)
        self.remains.anchored = not (superblock is None and footer is None and found is None)
        if found is not None:
            digest, start = found[0].digest, found[1].end
        digest = self.walk(start, digest)
        self.remains.manifest = self.choose_manifest(found[0] if found else None, digest)
        return self.remains

    def charged_block(self, offset: int, magic: bytes, what: str) -> bytes:
        block = read_block(self.source, offset, magic, what=what)
        if len(block) > self.budget:
            raise DamagedError("the file has more blocks in one another than can be read", offset=offset)
        self.budget -= len(block)
        return block

    def find_in_file(self, magic: bytes, start: int) -> list[int]:
        return _core.find_blocks(self.source.fd, magic, start, self.source.size, threads=self.threads)

    def add(self, error: FastckptError, what: str, offset: int, size: int, record: int | None = None) -> None:
        """Note a block that is not as written, for which something else stands in."""
        end = self.source.size
        if offset >= end:
            kind, message = Kind.MISSING, f"the {what} is missing: the file ends before it"
        elif isinstance(error, CheckpointIOError):
            kind, message = Kind.UNREADABLE, f"the {what} cannot be read"
        else:
            kind = Kind.TORN if error.actual == "zeros" else Kind.ROTTED
            message = error.message
        size = max(min(size, end - offset), 0)
        self.remains.findings.append(Finding(kind, message, min(offset, end), size, record=record, loss=False))

    def read_superblock(self) -> Superblock | None:
        try:
            head = self.source.read(0, min(SUPERBLOCK_SIZE, self.source.size))
            return decode_superblock(head)
        except UnsupportedVersionError:
            raise
        except NotACheckpointError as error:
            message = "the superblock was never written" if not any(head) else "the superblock is not there"
            error.message, error.actual = message, None if any(head) else "zeros"
            self.add(error, "superblock", 0, SUPERBLOCK_SIZE)
        except FastckptError as error:
            self.add(error, "superblock", 0, SUPERBLOCK_SIZE)
        return None

    def read_footer(self) -> Footer | None:
        size = self.source.size
        offset = max(size - FOOTER_SIZE, 0)
        try:
            return decode_footer(self.source.read(offset, size - offset), file_size=size)
        except UnsupportedVersionError:
            raise
        except FastckptError as error:
            error.message = f"the save was cut short or the end is damaged: {error.message}"
            self.add(error, "footer", offset, size - offset)
            # Where no footer begins, what ends here was cut: these bytes are other parts of the file.
            last = self.remains.findings[-1]
            if last.kind is Kind.ROTTED and not self.source.read(offset, size - offset).startswith(MAGIC_FOOTER):
                self.remains.findings[-1] = replace(last, kind=Kind.MISSING)
            return None

    def manifest_at(self, offset: int, digest: bytes | None, *, report: bool = False) -> tuple[Manifest, Extent] | None:
        """The whole manifest that stands at an offset, if it is the wanted one."""
        try:
            block = self.charged_block(offset, MAGIC_MANIFEST, "manifest")
            manifest = decode_manifest(block)
            if digest is not None and manifest.digest != digest:
                raise DamagedError("the manifest is not the one the rest of the file names")
            return manifest, Extent(offset, len(block))
        except UnsupportedVersionError:
            raise
        except FastckptError as error:
            if report:
                self.add(error, "manifest", offset, ALIGNMENT)
            return None

    def choose_manifest(self, at_start: Manifest | None, digest: bytes | None) -> Manifest | None:
        """The manifest that the records name: the one at the start, the copy, or one found by its magic."""
        footer = self.remains.footer
        copy = footer.section(SECTION_MANIFEST_COPY) if footer is not None else None
        if copy is not None:
            second = self.manifest_at(copy.extent.offset, copy.digest, report=True)
            if at_start is None and second is not None:
                return second[0]
        if at_start is not None:
            return at_start
        for offset in self.find(MAGIC_MANIFEST, 0):
            found = self.manifest_at(offset, digest)
            if found is not None:
                return found[0]
        return None

    # --- records ---------------------------------------------------------------

    def walk(self, at: int, digest: bytes | None) -> bytes | None:
        """Take the records one after the other; returns the manifest digest they agree on."""
        mirrors = self.named_mirrors(digest)
        candidates: Iterator[int] | None = None
        searched = self.remains.footer is not None
        while at < self.source.size:
            record = self.header_at(at, digest)
            foreign = record is not None and self.named is not None and self.named.get(at) != record.digest
            if record is not None and foreign:
                self.report_foreign(record)
                record = None
            self.remains.anchored |= record is not None
            if record is None and not searched:
                # Only now, since it takes reading the rest of the file. The index stands behind all records.
                searched = True
                mirrors = self.found_mirrors(align(at), digest)
            fitting = [
                mirror
                for mirror in mirrors.get(at, [])
                if digest in (None, mirror.manifest_digest)
                and (self.named is None or self.named.get(at) == mirror.digest)
            ]
            if record is None and fitting:
                record = fitting[0]
                if not foreign:
                    self.report_header(record)
            others = [mirror for mirror in fitting if record is not None and mirror.digest != record.digest]
            if record is not None and others:
                self.report_difference(record, others)
            if record is not None:
                if record.number not in self.remains.records:
                    self.remains.records[record.number] = record
                digest = digest or record.manifest_digest
                # The payload is passed over: it may hold what looks like a header.
                at = max(record.end, at + ALIGNMENT)
                continue
            if candidates is None:
                candidates = iter(sorted({*self.find(MAGIC_RECORD, align(at)), *mirrors}))
            following = next((offset for offset in candidates if offset > at), None)
            if following is None:
                break
            at = following
        return digest

    def report_header(self, record: Record) -> None:
        error: FastckptError
        error = DamagedError(f"the header of record {record.number} is damaged; its mirror in the index serves")
        offset = record.header.offset
        try:
            if not any(self.source.read(offset, min(PROLOGUE_SIZE, self.source.size - offset))):
                error.actual = "zeros"
        except CheckpointIOError as unreadable:
            error = unreadable
        self.add(error, f"header of record {record.number}", offset, record.header.size, record.number)

    def report_foreign(self, record: Record) -> None:
        """A whole header of this structure that is not the one which the footer proves: another save's."""
        self.report_other_save(record, "is of another save than the end of the file")

    def report_difference(self, record: Record, others: list[Record]) -> None:
        """Two whole headers for one place are those of two saves of the same structure; the payload decides."""
        self.remains.alternates.setdefault(record.number, others)
        self.report_other_save(record, "and its mirror in the index are of different saves")

    def report_other_save(self, record: Record, what: str) -> None:
        message = f"the header of record {record.number} {what}"
        self.remains.findings.append(
            Finding(Kind.INCONSISTENT, message, *record.header, record=record.number, loss=False)
        )

    def header_at(self, at: int, digest: bytes | None) -> Record | None:
        """The whole record header that stands at ``at`` and belongs there."""
        try:
            if at + RECORD_FIXED_SIZE > self.source.size:
                return None
            magic, size, offset, manifest_digest = _RECORD_HEAD.unpack(self.source.read(at, _RECORD_HEAD.size))
            if magic != MAGIC_RECORD or offset != at or digest not in (None, manifest_digest):
                return None
            if size > min(MAX_BLOCK, self.budget):
                return None
            self.budget -= size
            block = read_block(self.source, at, MAGIC_RECORD, what="record header")
            # The payload may be cut: the header is judged by itself.
            record = decode_record_header(block, limit=2**63)
        except FastckptError:
            return None
        self.budget += size
        return record

    def named_headers(self, footer: Footer) -> dict[int, bytes] | None:
        """Digests of the headers by their offset, if directory or index prove themselves by the root digest."""
        manifest = footer.section(SECTION_MANIFEST)
        for kind, what in ((SECTION_DIRECTORY, "directory"), (SECTION_INDEX, "index")):
            section = footer.section(kind)
            if section is None or section.extent.size > MAX_BLOCK or manifest is None:
                continue
            try:
                block = self.source.read(*section.extent)
                if kind == SECTION_DIRECTORY:
                    headers = {place.header.offset: place.digest for place in decode_directory(block)}
                else:
                    headers = {offset: block_digest(header) for offset, header in decode_index(block)}
            except FastckptError as error:
                if kind == SECTION_DIRECTORY:  # The index is looked at again, for the headers in it.
                    self.add(error, what, *section.extent)
                continue
            if root_digest(manifest.digest, list(headers.values())) == footer.root:
                return headers
        return None

    def named_mirrors(self, digest: bytes | None) -> dict[int, list[Record]]:
        """The headers in the index that the footer names, by the offset they belong at."""
        footer = self.remains.footer
        section = footer.section(SECTION_INDEX) if footer is not None else None
        if section is None or section.extent.size > MAX_BLOCK:
            return {}
        block = b""
        try:
            block = self.source.read(*section.extent)
            unseal(block, MAGIC_INDEX, what="index")
            if block[-len(section.digest) :] != section.digest:
                raise DamagedError("the index is not the one the footer names")
        except FastckptError as error:
            self.add(error, "index", *section.extent)
        # Of an index with a bad sector the rest still serves.
        return self.mirrors_in([block or read_there(self.source, *section.extent)], digest)

    def found_mirrors(self, start: int, digest: bytes | None) -> dict[int, list[Record]]:
        """The headers in every index that is found by its magic."""
        # The last one first: those before it may lie in a tensor that holds a checkpoint file.
        return self.mirrors_in(map(self.index_at, reversed(self.find(MAGIC_INDEX, start))), digest)

    def index_at(self, offset: int) -> bytes:
        """What is there of an index: the end of the file may cut it."""
        with contextlib.suppress(FastckptError):
            return self.charged_block(offset, MAGIC_INDEX, "index")
        there = min(self.source.size - offset, self.budget, MAX_CUT_INDEX)
        self.budget -= there
        return read_there(self.source, offset, there)

    def mirrors_in(self, blocks: Iterable[bytes], digest: bytes | None) -> dict[int, list[Record]]:
        """The headers in these blocks. Each proves itself, so those in a damaged index are taken too."""
        mirrors: dict[int, list[Record]] = {}
        for block in blocks:
            for record in self.headers_in(block):
                if digest in (None, record.manifest_digest):
                    known = mirrors.setdefault(record.header.offset, [])
                    if len(known) < MAX_MIRRORS and all(record.digest != other.digest for other in known):
                        known.append(record)
        return mirrors

    def headers_in(self, block: bytes) -> Iterator[Record]:
        view = memoryview(block)
        at = block.find(MAGIC_RECORD)
        while at >= 0:
            try:
                size = read_prologue(view[at:], MAGIC_RECORD, what="record header", limit=len(block) - at)
                if size > self.budget:
                    return
                self.budget -= size
                yield decode_record_header(view[at : at + size], limit=2**63)
                self.budget += size
                at = block.find(MAGIC_RECORD, at + size)
            except FastckptError:
                at = block.find(MAGIC_RECORD, at + 1)
