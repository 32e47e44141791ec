"""Verifying foreign files: is every byte of them named, and does it match the checksum there is?

A ``.pt`` has a CRC-32 for each of its records, and all of them are summed,
also those that no tensor lies in: the bytes of objects that are not understood
are as much a part of the state. A legacy ``.pt`` and a ``.safetensors`` have no
checksums: their bytes are present, never proven.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.findings import UNSETTLED, ByteCounts, Finding, Kind, Report, conclude
from fastckpt.foreign.checks import check_records
from fastckpt.foreign.deflated import findings_of
from fastckpt.foreign.inflate import inflated_crc
from fastckpt.foreign.last_record import CONTRADICTED, Row, is_contradicted
from fastckpt.foreign.model import OUTSIDE, ForeignFile, ForeignStorage
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.zip_account import account_for, unaccounted
from fastckpt.foreign.zip_records import ZipRecord
from fastckpt.io.anew import until_right
from fastckpt.io.source import Source
from fastckpt.io.sums import sum_parts
from fastckpt.io.transfer import Move, Progress
from fastckpt.io.unreadable import unreadable_parts
from fastckpt.layout.entries import by_storage
from fastckpt.text import some

FORMALITIES: Final = (OUTSIDE, "version", "byteorder", ".format_version", ".storage_alignment", ".data/")
"""Records that say something of the archive and hold nothing of the state."""


def verify_foreign(source: Source, *, threads: int, progress: Progress | None, is_read: bool = False) -> Report:
    """The report on a ``.pt`` or ``.safetensors`` file.

    With ``is_read`` all of it has been read just now, so bytes without a CRC need not be.

    Bytes without a CRC are reported as unproven: they are there, and nothing
    in the file says that they are right.

    Raises:
        DamagedError, UnsupportedStateError, NotACheckpointError, CheckpointIOError: It cannot be read as a whole file.
    """
    foreign = open_foreign(source)
    report = Report(source.path, foreign.kind, source.file_size)
    report.tensors_total = len(foreign.entries)
    proven = sum(storage.nbytes for storage in foreign.storages if storage.crc is not None)
    # Of a file that is as it was written; a damaged one is looked at again.
    report.tensor_bytes = ByteCounts(proven, sum(storage.nbytes for storage in foreign.storages) - proven)
    report.findings += check_sums(foreign, source, report, threads=threads, progress=progress, is_read=is_read)
    report.findings += _check_around(foreign, source, report.findings, threads=threads)
    report.findings += account_for_bytes(foreign, source)
    report.findings += source.unpacked.findings if source.unpacked is not None else ()
    if report.ok:
        report.findings += _not_of_one_save(foreign, source)
    report.findings.sort(key=lambda finding: (finding.offset, finding.size))
    conclude(report)
    return report


def _not_of_one_save(foreign: ForeignFile, source: Source) -> Iterator[Finding]:
    """Yield a finding for each archive that nothing proves to be of one save, and whose last record says otherwise."""
    for archive in foreign.archives:

        def read(row: Row, records: Mapping[str, ZipRecord] = archive.records) -> bytes:
            return source.read(records[row.name].offset, row.size)

        if is_contradicted(archive.records.values(), read):
            yield Finding(Kind.UNPROVEN, f"{UNSETTLED}: {CONTRADICTED}", archive.begin, 0, loss=False)


def account_for_bytes(foreign: ForeignFile, source: Source) -> Iterator[Finding]:
    """Yield a finding for every range of a foreign file that belongs to nothing, or contradicts another one."""
    before = findings_of(source)
    if before is not None:
        yield from before
    elif foreign.archives:
        yield from account_for(source, foreign.archives)
    else:
        yield from unaccounted(foreign.end, source.size, "behind the last storage")


def is_formality(record: ForeignStorage) -> bool:
    """Whether a record says something of the archive only, and holds nothing of the state."""
    return record.key.startswith(FORMALITIES)


def check_sums(
    foreign: ForeignFile,
    source: Source,
    report: Report,
    *,
    threads: int,
    progress: Progress | None,
    is_read: bool = False,
) -> Iterator[Finding]:
    """Sum every record, and yield a finding for each that is not what its CRC-32 says, and one for all without."""
    on_storage = by_storage(foreign.entries)
    records = [*foreign.storages, *foreign.others]
    proven = [number for number, record in enumerate(records) if _is_stated(record) and record.full is None]
    parts = [Move(records[number].offset, 0, records[number].nbytes) for number in proven]
    moved = sum_parts(source, parts, threads=threads, progress=progress)
    unreadable = {fault.move: fault.errno for fault in moved.faults}
    crcs = [*moved.crcs]

    def wrong(positions: Iterable[int]) -> list[int]:
        return [at for at in positions if at not in unreadable and crcs[at] != records[proven[at]].crc]

    def again(positions: Sequence[int]) -> list[int]:
        anew = sum_parts(source, [parts[at] for at in positions], threads=threads)
        for at, crc in zip(positions, anew.crcs, strict=True):
            crcs[at] = crc
        return wrong(positions)

    until_right(source, wrong(range(len(proven))), again)
    for position, number in enumerate(proven):
        record, tensors = records[number], tuple(entry.name for entry in on_storage.get(number, ()))
        shown = ", ".join(tensors) or record.key
        if position in unreadable:
            kind, message = (
                Kind.UNREADABLE,
                f"record {record.key} cannot be read (error {unreadable[position]}): {shown}",
            )
        elif crcs[position] != record.crc:
            sums = f"(expected {record.crc:08x}, found {crcs[position]:08x})"
            kind, message = Kind.ROTTED, f"the CRC-32 of record {record.key} does not match: {shown} {sums}"
        else:
            report.verified += record.nbytes
            continue
        loss = not is_formality(record)
        yield Finding(kind, message, record.offset, record.nbytes, tensors=tensors, loss=loss)
    yield from _check_deflated(records, source, report)
    unproven = [record for record in records if record.nbytes and record.crc is None]
    if unproven:
        if not is_read:
            yield from _unreadable(unproven, foreign, source, threads=threads, progress=progress)
        total = sum(record.nbytes for record in unproven)
        message = f"{total} bytes have no checksum in this file: present, not proven"
        yield Finding(Kind.UNPROVEN, message, min(record.offset for record in unproven), total, loss=False)


def _unreadable(
    records: Sequence[ForeignStorage], foreign: ForeignFile, source: Source, *, threads: int, progress: Progress | None
) -> Iterator[Finding]:
    """Read what has no checksum: only that tells whether it can be read."""
    names: dict[int, list[str]] = {}
    for entry in foreign.entries:
        names.setdefault(foreign.storages[entry.storage].offset, []).append(entry.name)
    ranges = [(record.offset, record.nbytes) for record in records]
    found = unreadable_parts(source, ranges, threads=threads, progress=progress)
    for record, faults in zip(records, found, strict=True):
        tensors = tuple(names.get(record.offset, ()))
        for fault in faults:
            message = f"{some(tensors) or record.key}: {fault.size} bytes cannot be read (error {fault.errno})"
            yield Finding(Kind.UNREADABLE, message, fault.offset, fault.size, tensors=tensors)


def _check_around(foreign: ForeignFile, source: Source, found: Sequence[Finding], *, threads: int) -> Iterator[Finding]:
    """Yield a finding for each record around others in which something is wrong that none of them shows."""
    for record in foreign.around:
        try:
            check_records([record], source, threads=threads)
        except DamagedError as error:
            inside = range(record.offset, record.offset + record.nbytes)
            if not any(finding.offset in inside for finding in found if finding.kind is not Kind.UNPROVEN):
                yield Finding(Kind.ROTTED, error.message, record.offset, record.nbytes)
        except CheckpointIOError as error:
            message = f"record {record.key} cannot be read (error {error.errno})"
            yield Finding(Kind.UNREADABLE, message, record.offset, record.nbytes)


def _is_stated(record: ForeignStorage) -> bool:
    return bool(record.nbytes) and record.crc is not None


def _check_deflated(records: Iterable[ForeignStorage], source: Source, report: Report) -> Iterator[Finding]:
    """The same for records that are deflated. Tensors are in none of them."""
    for record in records:
        if record.full is None or not _is_stated(record):
            continue
        kind, message = Kind.ROTTED, f"the CRC-32 of record {record.key} does not match what it becomes when inflated"
        try:
            if inflated_crc(source, record.offset, record.nbytes, record.full, name=record.key) == record.crc:
                report.verified += record.nbytes
                continue
        except DamagedError as error:
            message = error.message
        except CheckpointIOError as error:
            kind, message = Kind.UNREADABLE, f"record {record.key} cannot be read (error {error.errno})"
        yield Finding(kind, message, record.offset, record.nbytes, loss=True)
