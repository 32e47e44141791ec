"""Verifying foreign files: is every byte of them named, and does it match the checksum there is?

A ``.pt`` has a CRC-32 for each of its records, and all of them are summed,
also those that no tensor lies in: the bytes of objects that are not understood
are as much a part of the state. A legacy ``.pt`` and a ``.safetensors`` have no
checksums: their bytes are present, never proven.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastckpt.findings import Finding, Kind, Report, conclude
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.zip_account import account_for, unaccounted
from fastckpt.io.source import Source
from fastckpt.io.sums import sum_parts
from fastckpt.io.transfer import Move, Progress

_FORMALITIES: Final = ("version", "byteorder", ".format_version", ".storage_alignment", ".data/")
"""Records that say something of the archive and hold nothing of the state."""


def verify_foreign(source: Source, *, threads: int, progress: Progress | None) -> Report:
    """The report on a ``.pt`` or ``.safetensors`` file.

    Bytes without a CRC are reported as unproven: they are there, and nothing
    in the file says that they are right.

    Raises:
        DamagedError, UnsupportedStateError, NotACheckpointError, CheckpointIOError: It cannot be read as a whole file.
    """
    foreign = open_foreign(source)
    report = Report(source.path, foreign.kind, source.size)
    report.tensors_total = len(foreign.entries)
    report.findings += check_sums(foreign, source, report, threads=threads, progress=progress)
    report.findings += account_for_bytes(foreign, source)
    report.findings.sort(key=lambda finding: (finding.offset, finding.size))
    conclude(report)
    return report


def account_for_bytes(foreign: ForeignFile, source: Source) -> Iterator[Finding]:
    """Yield a finding for every range of a foreign file that belongs to nothing, or contradicts another one."""
    if foreign.archives:
        yield from account_for(source, foreign.archives)
    else:
        yield from unaccounted(foreign.end, source.size, "behind the last storage")


def is_formality(record: ForeignStorage) -> bool:
    """Whether a record says something of the archive only, and holds nothing of the state."""
    return record.key.startswith(_FORMALITIES)


def check_sums(
    foreign: ForeignFile, source: Source, report: Report, *, threads: int, progress: Progress | None
) -> Iterator[Finding]:
    """Sum every record, and yield a finding for each that is not what its CRC-32 says, and one for all without."""
    names: dict[int, list[str]] = {}
    for entry in foreign.entries:
        names.setdefault(entry.storage, []).append(entry.name)
    records = [*foreign.storages, *foreign.others]
    proven = [number for number, record in enumerate(records) if record.nbytes and record.crc is not None]
    parts = [Move(records[number].offset, 0, records[number].nbytes) for number in proven]
    moved = sum_parts(source, parts, threads=threads, progress=progress)
    unreadable = {fault.move: fault.errno for fault in moved.faults}
    for position, number in enumerate(proven):
        record, tensors = records[number], tuple(names.get(number, ()))
        shown = ", ".join(tensors) or record.key
        if position in unreadable:
            kind, message = (
                Kind.UNREADABLE,
                f"record {record.key} cannot be read (error {unreadable[position]}): {shown}",
            )
        elif moved.crcs[position] != record.crc:
            sums = f"(expected {record.crc:08x}, found {moved.crcs[position]:08x})"
            kind, message = Kind.ROTTED, f"the CRC-32 of record {record.key} does not match: {shown} {sums}"
        else:
            report.verified += record.nbytes
            continue
        loss = not is_formality(record)
        yield Finding(kind, message, record.offset, record.nbytes, tensors=tensors, loss=loss)
    unproven = [record for record in records if record.nbytes and record.crc is None]
    if unproven:
        total = sum(record.nbytes for record in unproven)
        message = f"{total} bytes have no checksum in this file: present, not proven"
        yield Finding(Kind.UNPROVEN, message, min(record.offset for record in unproven), total, loss=False)
