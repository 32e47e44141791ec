"""An open ``.fckpt`` file: its frame, manifest and records, found and checked.

Nothing here reads payloads. Where one copy of the metadata is damaged and
another proves itself by the footer's digests, the other one is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, Final

from fastckpt.constants import (
    DIGEST_SIZE,
    MAGIC_RECORD,
    SECTION_DIRECTORY,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
)
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError
from fastckpt.fckpt.footer import located, read_footer
from fastckpt.io.anew import read_until
from fastckpt.io.open_source import open_source
from fastckpt.io.source import Openable, Source
from fastckpt.layout.blocks import PROLOGUE_SIZE, read_prologue
from fastckpt.layout.directory import HeaderPlace, decode_directory
from fastckpt.layout.entries import Entry
from fastckpt.layout.frame import (
    Section,
    decode_index,
    root_digest,
)
from fastckpt.layout.manifest import Manifest, decode_manifest
from fastckpt.layout.places import StoragePlace
from fastckpt.layout.records import NO_LINKS, Links, Record, decode_record_header
from fastckpt.layout.tree import decode_tree

_FEW: Final = 1 / 8
"""Of all records. The index of more of them is read faster in one piece."""


class CheckpointFile:
    """A checkpoint file opened for reading; a context manager.

    Opening reads the superblock and the footer only. A file that is open
    already is closed with this one, but not if this raises.

    Raises:
        NotACheckpointError: It is not a ``.fckpt`` file.
        UnsupportedVersionError: It needs a newer fastckpt.
        DamagedError: It has no whole footer: a save that was cut short, or
            damage there. It may be salvageable; it is not loadable.
        CheckpointIOError: It cannot be opened or read.
    """

    def __init__(self, file: Openable) -> None:
        self.source = file if isinstance(file, Source) else open_source(file)
        try:
            self.path = self.source.path
            self.footer = read_footer(self.source)
        except BaseException:
            if self.source is not file:
                self.source.close()
            raise

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    def _located(self, error: FastckptError, offset: int) -> FastckptError:
        return located(error, offset, self.path)

    def _section(self, section: Section) -> bytes:
        def is_right(block: bytes) -> bool:
            return block[-len(section.digest) :] == section.digest

        block = read_until(self.source, lambda: self.source.read(*section.extent), is_right)
        if is_right(block):
            return block
        raise DamagedError(
            f"the section of kind {section.kind} is not the one the footer names",
            expected=section.digest.hex(),
            actual=block[-len(section.digest) :].hex(),
        )

    def required_section(self, kind: int) -> Section:
        """The section of this kind. Raises DamagedError if the footer names none."""
        section = self.footer.section(kind)
        if section is None:
            raise self._located(DamagedError(f"there is no section of kind {kind}"), 0)
        return section

    def read_section(self, kind: int) -> bytes:
        """The sealed block of a section, compared with the digest in the footer (not yet unsealed)."""
        section = self.required_section(kind)
        try:
            return self._section(section)
        except FastckptError as error:
            raise self._located(error, section.extent.offset) from None

    def _first_whole(self, *attempts: Callable[[], object]) -> object:
        """The first attempt that succeeds; the first failure if none does."""
        failure: FastckptError | None = None
        for attempt in attempts:
            try:
                return attempt()
            except (DamagedError, CheckpointIOError) as error:
                # What could not be read may be whole: that it is damaged is not known then.
                if failure is None or isinstance(error, CheckpointIOError):
                    failure = error
        assert failure is not None
        raise self._located(failure, 0)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, from the copy at the end or, if that is damaged, the one at the start."""

        def attempt(kind: int) -> Callable[[], Manifest]:
            return lambda: self._decode_manifest(self.required_section(kind))

        result = self._first_whole(attempt(SECTION_MANIFEST_COPY), attempt(SECTION_MANIFEST))
        assert isinstance(result, Manifest)
        return result

    def _decode_manifest(self, section: Section) -> Manifest:
        try:
            manifest = decode_manifest(self._section(section))
            if manifest.version != self.footer.version:
                raise DamagedError(
                    "manifest and footer are of different versions of the format",
                    expected=self.footer.version,
                    actual=manifest.version,
                )
            if manifest.record_count != self.footer.record_count:
                raise DamagedError(
                    "manifest and footer disagree in the number of records",
                    expected=self.footer.record_count,
                    actual=manifest.record_count,
                )
        except FastckptError as error:
            raise self._located(error, section.extent.offset) from None
        return manifest

    @cached_property
    def records(self) -> list[Record]:
        """All records, from the index or, if that is damaged, from the headers in place.

        Raises:
            DamagedError: Neither is whole, which the root digest proves; or
                they and the manifest do not describe the same storages.
        """
        records = self._first_whole(self._records_from_index, self._records_in_place)
        assert isinstance(records, list)
        manifest = self.required_section(SECTION_MANIFEST).extent
        try:
            _check_records(self.manifest, records, manifest.end)
        except FastckptError as error:
            raise self._located(error, manifest.offset) from None
        return records

    @cached_property
    def _directory(self) -> list[HeaderPlace] | None:
        """Where the headers stand, if the directory proves itself by the root digest; None: ask `records`."""
        try:
            places = decode_directory(self._section(self.required_section(SECTION_DIRECTORY)))
            start = self.required_section(SECTION_MANIFEST).extent.end
            for place in places:
                if place.header.offset < start:
                    return None
                start = place.header.end
        except (DamagedError, CheckpointIOError):
            return None
        manifest = self.required_section(SECTION_MANIFEST_COPY).digest
        proven = root_digest(manifest, [place.digest for place in places]) == self.footer.root
        return places if proven and len(places) == self.footer.record_count else None

    def record(self, number: int) -> Record:
        """One record. Of the headers only its own is read, where all others are not known yet.

        Who asks for one after the other gets them from the index as soon as these were a few of them.

        Raises:
            DamagedError: As `records`.
        """
        # From afar the index costs no more than a header: it mostly came with the footer.
        if "records" in self.__dict__ or self.footer.version == 1 or self.source.far:
            return self.records[number]
        known = self._single.get(number)
        if known is not None:
            return known
        if self._directory is None or len(self._single) >= max(_FEW * self.footer.record_count, 1):
            return self.records[number]
        place = self._directory[number]
        try:
            record = self._decode_header(self.source.read(*place.header), place.header.offset)
            if record.digest != place.digest:
                raise DamagedError(f"the header of record {number} is not the one the directory names")
            before = [place.digest for place in self._directory[max(number - 2, 0) : number]]
            digests = [bytes(DIGEST_SIZE)] * 2 + before
            if record.links != (digests[-1], digests[-2]):
                raise DamagedError(f"record {number} does not follow the one before it")
            places = self.manifest.storages
            _check_storages(places, record, number, self.manifest.digest)
            if self.storage_counts[number] != len(record.storages):
                raise DamagedError(f"record {number} does not hold every storage that the manifest says")
        except (DamagedError, CheckpointIOError):
            return self.records[number]
        self._single[number] = record
        return record

    def records_of(self, numbers: Collection[int]) -> list[Record]:
        """Records by their numbers: few of many by their own headers, else all of them by the index.

        Raises:
            DamagedError: As `records`.
        """
        if len(numbers) > _FEW * self.footer.record_count:
            return [self.records[number] for number in numbers]
        return [self.record(number) for number in numbers]

    @cached_property
    def storage_counts(self) -> Counter[int]:
        """How many storages each record holds, by the manifest."""
        return Counter(place.record for place in self.manifest.storages)

    @cached_property
    def _single(self) -> dict[int, Record]:
        """Records that were read one by one."""
        return {}

    def _records_from_index(self) -> list[Record]:
        section = self.required_section(SECTION_INDEX)
        try:
            headers = decode_index(self._section(section))
            return self._proven([self._decode_header(block, offset) for offset, block in headers])
        except FastckptError as error:
            raise self._located(error, section.extent.offset) from None

    def _records_in_place(self) -> list[Record]:
        records: list[Record] = []
        offset = self.required_section(SECTION_MANIFEST).extent.end
        for _ in range(self.footer.record_count):
            prologue = self.source.read(offset, PROLOGUE_SIZE)
            size = read_prologue(prologue, MAGIC_RECORD, what="record header", limit=self.source.size - offset)
            records.append(self._decode_header(self.source.read(offset, size), offset))
            offset = records[-1].end
        return self._proven(records)

    def _decode_header(self, block: bytes | memoryview, offset: int) -> Record:
        record = decode_record_header(block, limit=self.source.size)
        if record.header.offset != offset:
            raise DamagedError(
                f"record {record.number} is not where it belongs", expected=record.header.offset, actual=offset
            )
        return record

    def _proven(self, records: list[Record]) -> list[Record]:
        """Raise DamagedError unless these are exactly the records of the footer's root digest."""
        root = root_digest(self.required_section(SECTION_MANIFEST_COPY).digest, [record.digest for record in records])
        if len(records) != self.footer.record_count or root != self.footer.root:
            raise DamagedError(
                "the record headers do not match the root digest", expected=self.footer.root.hex(), actual=root.hex()
            )
        return records

    @cached_property
    def entry_names(self) -> list[str]:
        """The flat names of all entries, in tree order."""
        return self.manifest.entries.names()

    def checked_entries(self) -> list[Entry]:
        """As `entries`, once manifest and records were found to describe the same storages.

        Raises:
            DamagedError: They do not, or an entry does not lie inside its
                storage; names the first difference.
        """
        _ = self.records  # They are compared with the manifest when they are read.
        return self.entries()

    def entries(self) -> list[Entry]:
        """All entries, in tree order. Records are compared with the manifest when they are read.

        Raises:
            DamagedError: An entry does not lie inside its storage.
        """
        try:
            return self.manifest.checked_entries()
        except FastckptError as error:
            raise self._located(error, self.required_section(SECTION_MANIFEST).extent.offset) from None

    def tree(self) -> Any:
        """The nesting of the state. Raises DamagedError, UnsupportedVersionError: see `decode_tree`."""
        return self._decoded(lambda: decode_tree(self.manifest.tree, len(self.manifest.entries)))

    def metadata(self) -> dict[str, Any]:
        """The user's metadata. Raises what `tree` raises."""
        metadata: dict[str, Any] = self._decoded(lambda: self.manifest.metadata)
        return metadata

    def _decoded(self, decode: Callable[[], Any]) -> Any:
        try:
            return decode()
        except FastckptError as error:
            raise self._located(error, self.required_section(SECTION_MANIFEST).extent.offset) from None


def _check_records(manifest: Manifest, records: list[Record], start: int) -> None:
    """The records must follow one another from ``start`` on and hold exactly the storages of the manifest.

    That they do not overlap bounds what a file can make a reader allocate.
    """
    seen = 0
    links = NO_LINKS if manifest.version > 1 else None
    for number, record in enumerate(records):
        if record.header.offset != start:
            raise DamagedError(f"record {number} is not where it belongs", expected=start, actual=record.header.offset)
        start = record.end
        if record.links != links:
            raise DamagedError(f"record {number} does not follow the one before it")
        links = Links(record.digest, links.previous) if links is not None else None
        _check_storages(manifest.storages, record, number, manifest.digest)
        seen += len(record.storages)
    if seen != len(manifest.storages):
        raise DamagedError("the records do not hold every storage", expected=len(manifest.storages), actual=seen)


def _check_storages(places: list[StoragePlace], record: Record, number: int, manifest_digest: bytes) -> None:
    """A record must be the one of its number, and its storages must lie where the manifest says."""
    if record.number != number or record.manifest_digest != manifest_digest:
        raise DamagedError(f"record {number} belongs to another manifest or place")
    for storage, offset, nbytes in record.storages:
        if storage >= len(places) or places[storage] != (nbytes, offset, number):
            raise DamagedError(f"record {number} and the manifest disagree about storage {storage}")
