"""Verifying a ``.fckpt``: every block, leaf and padding byte of it, and every copy of the metadata."""

from __future__ import annotations

from fastckpt import _core
from fastckpt.constants import (
    ALIGNMENT,
    FOOTER_SIZE,
    LEAF_SIZE,
    MAGIC_RECORD,
    MAGIC_SUPERBLOCK,
    SECTION_DIRECTORY,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_PARITY,
    SUPERBLOCK_SIZE,
)
from fastckpt.errors import (
    CheckpointIOError,
    DamagedError,
    FastckptError,
    NotACheckpointError,
    UnsupportedVersionError,
)
from fastckpt.fckpt.bad_ranges import findings_of
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, check_chunk_digests, read_targets
from fastckpt.fckpt.sections import finding_of, require_sealed
from fastckpt.findings import ByteCounts, Finding, Kind, Report, conclude
from fastckpt.io.read_parts import read_parts
from fastckpt.io.residency import is_warm
from fastckpt.io.transfer import Progress
from fastckpt.layout.blocks import Extent, block_digest, unseal
from fastckpt.layout.directory import decode_directory
from fastckpt.layout.entries import Entry
from fastckpt.layout.frame import Section, decode_index, decode_superblock
from fastckpt.layout.records import Record, decode_record_header
from fastckpt.layout.tree import decode_tree
from fastckpt.seals.parity_section import decode_page
from fastckpt.surveying.holes import Hole, Holes, merge_holes

_BAD = (DamagedError, CheckpointIOError)
"""What reading a damaged part of a file raises: its bytes are wrong, or the system cannot read them."""


class Verification:
    """The checks on one file; each adds to the report."""

    def __init__(self, file: CheckpointFile, threads: int, progress: Progress | None) -> None:
        self.file = file
        self.threads = threads
        self.progress = progress
        self.report = Report(file.path, "fckpt", file.source.size, root=file.footer.root.hex())

    def run(self) -> Report:
        report = self.report
        self.check_superblock()
        for section in self.file.footer.sections:
            self.check_section(section)
        entries = self.file.checked_entries()
        records = self.file.records
        report.tensors_total = len(entries)
        self.check_trees(len(entries))
        self.check_index(records)
        self.check_directory(records)
        self.check_parity()
        self.check_payloads(records)  # First: of a remote file they bring what lies between them.
        self.check_headers(records)
        self.check_entry_tables(records, entries)
        self.check_layout(records)
        report.verified = report.size
        report.findings.sort(key=lambda finding: (finding.offset, finding.size))
        conclude(report)
        return report

    def add(self, error: FastckptError, offset: int, size: int, *, loss: bool, record: int | None = None) -> None:
        self.report.findings.append(finding_of(error, Extent(offset, size), loss=loss, record=record))

    def check_superblock(self) -> None:
        try:
            block = self.file.source.read(0, SUPERBLOCK_SIZE)
            superblock = decode_superblock(block)
            section = self.file.required_section(SECTION_MANIFEST)
            if superblock.manifest != section.extent or superblock.manifest_digest != section.digest:
                raise DamagedError("superblock and footer disagree about the manifest")
            if superblock.version != self.file.footer.version:
                raise DamagedError("superblock and footer state different versions of the format")
        except (*_BAD, NotACheckpointError) as error:
            if isinstance(error, NotACheckpointError) and not any(block[: len(MAGIC_SUPERBLOCK)]):
                error.actual = "zeros"
            self.add(error, 0, SUPERBLOCK_SIZE, loss=False)

    def check_section(self, section: Section) -> None:
        """Every section the footer names must be the sealed block it was; nothing is lost with a copy."""
        try:
            require_sealed(self.file.source, section)
        except _BAD as error:
            self.add(error, section.extent.offset, section.extent.size, loss=False)

    def contradiction(self, message: str, extent: Extent, *, loss: bool, record: int | None = None) -> None:
        """A finding about bytes that are as written, but contradict each other."""
        self.report.findings.append(Finding(Kind.INCONSISTENT, message, *extent, record=record, loss=loss))

    def second_look(self, error: FastckptError, extent: Extent) -> None:
        """Add what is wrong with the content of a section, unless `check_section` has said so of its bytes."""
        if any(finding.offset == extent.offset for finding in self.report.findings):
            return
        if isinstance(error, CheckpointIOError):
            self.add(error, *extent, loss=False)
        else:
            self.contradiction(error.message, extent, loss=False)

    def check_trees(self, entry_count: int) -> None:
        """The nesting and the metadata must be what a load can decode."""
        manifest = self.file.manifest
        extent = self.file.required_section(SECTION_MANIFEST).extent
        try:
            decode_tree(manifest.tree, entry_count)
        except DamagedError as error:
            self.contradiction(error.message, extent, loss=True)
        try:
            _ = manifest.metadata
        except DamagedError as error:
            self.contradiction(f"the metadata cannot be decoded: {error.message}", extent, loss=True)

    def check_index(self, records: list[Record]) -> None:
        """A whole index must hold the record headers, also where the headers in place made up for it."""
        section = self.file.required_section(SECTION_INDEX)
        try:
            block = self.file.source.read(*section.extent)
            headers = [(offset, block_digest(header)) for offset, header in decode_index(block)]
        except _BAD as error:
            self.second_look(error, section.extent)
            return
        if headers != [(record.header.offset, record.digest) for record in records]:
            self.contradiction("the index does not hold the headers of this file", section.extent, loss=False)

    def check_directory(self, records: list[Record]) -> None:
        """A whole directory must name the record headers, also where no reader needed it."""
        section = self.file.footer.section(SECTION_DIRECTORY)
        if section is None:
            return
        try:
            places = decode_directory(self.file.source.read(*section.extent))
        except _BAD as error:
            self.second_look(error, section.extent)
            return
        if places != [(record.header, record.digest) for record in records]:
            self.contradiction("the directory does not name the headers of this file", section.extent, loss=False)

    def check_parity(self) -> None:
        """A whole parity section must be one of this file; whether it is, each of its pages says."""
        section = self.file.footer.section(SECTION_PARITY)
        if section is None:
            return
        begin, end = section.extent.offset, section.extent.end
        try:
            said = decode_page(self.file.source.read(begin + ALIGNMENT, ALIGNMENT)).section
            if (said.covered, said.end, said.root) != (begin, end, self.file.footer.root):
                raise DamagedError("the parity is not of this file")
        except _BAD as error:
            self.second_look(error, section.extent)

    def check_entry_tables(self, records: list[Record], entries: list[Entry]) -> None:
        """The entries in a record's header must be those that the manifest has on its storages."""
        places = self.file.manifest.storages
        by_record: list[list[Entry]] = [[] for _ in records]
        for entry in entries:
            by_record[places[entry.storage].record].append(entry)
        for record, expected in zip(records, by_record, strict=True):
            if not _same_entries(record, expected):
                message = f"record {record.number} and the manifest name different tensors"
                self.contradiction(message, record.header, loss=False, record=record.number)

    def check_headers(self, records: list[Record]) -> None:
        """The header in place must be the one in the index; and its digests must agree with each other."""
        source = self.file.source
        found = read_parts(source, [record.header for record in records], threads=self.threads)
        for record, here in zip(records, found, strict=True):
            try:
                block = here or source.read(*record.header)
                unseal(block, MAGIC_RECORD, what="record header")
                if block_digest(block) != record.digest:
                    decode_record_header(block, limit=self.file.source.size)
                    raise DamagedError(f"the header of record {record.number} differs from its mirror in the index")
            except _BAD as error:
                self.add(error, record.header.offset, record.header.size, loss=False, record=record.number)
            for chunk in check_chunk_digests(record):
                extent = record.chunk_extent(chunk)
                message = f"record {record.number}: the digest of chunk {chunk} contradicts its leaf digests"
                self.report.findings.append(
                    Finding(Kind.INCONSISTENT, message, *extent, record=record.number, chunk=chunk, loss=False)
                )

    def check_layout(self, records: list[Record]) -> None:
        """Blocks and payloads must cover the file without hole or overlap, in order; padding must be zero."""
        rows = self.file.footer.sections
        others = [section.kind for section in rows[1 : -2 if self.file.footer.version == 1 else -3]]
        if others != sorted(others) or sorted(rows, key=lambda row: row.extent) != list(rows):
            extent = Extent(self.file.source.size - FOOTER_SIZE, FOOTER_SIZE)
            self.contradiction("the sections are not in the order of their kinds", extent, loss=False)
        sections = sorted(section.extent for section in self.file.footer.sections)
        ranges = [Extent(0, SUPERBLOCK_SIZE), *sections, Extent(self.file.source.size - FOOTER_SIZE, FOOTER_SIZE)]
        ranges += [Extent(record.header.offset, record.end - record.header.offset) for record in records]
        at = 0
        for extent in sorted(ranges):
            if extent.offset != at:
                what = "overlap" if extent.offset < at else "do not follow one another"
                message = f"blocks {what} at byte {min(at, extent.offset)}"
                begin, end = sorted((at, extent.offset))
                self.report.findings.append(Finding(Kind.INCONSISTENT, message, begin, end - begin, loss=False))
            at = max(at, extent.end)
        gaps = {r.number: Extent(r.payload.end, r.end - r.payload.end) for r in records if r.end != r.payload.end}
        found = read_parts(self.file.source, list(gaps.values()), threads=self.threads)
        for (number, padding), here in zip(gaps.items(), found, strict=True):
            try:
                if any(here or self.file.source.read(*padding)):
                    raise DamagedError(f"the padding after record {number} is not zero")
            except _BAD as error:
                self.add(error, *padding, loss=False, record=number)

    def check_payloads(self, records: list[Record]) -> None:
        targets = [Target(record, 0, record.raw_size, None) for record in records]
        found = verify_payloads(self.file, targets, threads=self.threads, progress=self.progress)
        self.report.findings += found
        self.report.tensor_bytes = self.count_bytes(found)

    def count_bytes(self, bad: list[Finding]) -> ByteCounts:
        """What the leaves that are not bad prove of the storages."""
        found: dict[int | None, list[Hole]] = {}
        for finding in bad:
            if finding.leaf is not None:
                begin = finding.leaf * LEAF_SIZE
                end = begin + finding.leaves * LEAF_SIZE
                found.setdefault(finding.record, []).append(Hole(begin, end, finding.kind))
        holes = {record: Holes(merge_holes(bad)) for record, bad in found.items()}
        places = self.file.manifest.storages
        gone = sum(
            place.nbytes - holes[place.record].judge(place.offset, place.offset + place.nbytes, proven=True)[1]
            for place in places
            if place.record in holes
        )
        return ByteCounts(sum(place.nbytes for place in places) - gone, 0, gone)


def _same_entries(record: Record, expected: list[Entry]) -> bool:
    try:
        return list(record.entries) == expected
    except (DamagedError, UnsupportedVersionError):
        return False


def verify_payloads(
    file: CheckpointFile, targets: list[Target], *, threads: int, progress: Progress | None
) -> list[Finding]:
    """Findings for every bad leaf in the payloads of ``targets``.

    A file in the page cache is hashed where it is mapped; a cold one is read
    past the cache, which is faster than faulting it in.
    """
    mapped = memoryview(file.source.map(private_writable=False)) if is_warm(file.source) else None
    address = _core.address(mapped) if mapped is not None else None
    bad = read_targets(file.source, targets, Reading(threads, progress=progress, mapped_at=address, release=True))
    del mapped
    return findings_of(bad)
