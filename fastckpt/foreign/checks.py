"""What a foreign file must fulfil before its content is used: CRCs that match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastckpt.errors import DamagedError
from fastckpt.foreign.inflate import inflated_crc
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.io.anew import until_right
from fastckpt.io.source import Source
from fastckpt.io.sums import sum_parts
from fastckpt.io.transfer import Move
from fastckpt.text import quoted, some


def check_crcs(foreign: ForeignFile, crcs: Sequence[int]) -> None:
    """Raise DamagedError, naming the tensors, unless every stated CRC is that of the bytes read."""
    if bad := wrong_crcs(foreign, crcs):
        damaged = set(bad)
        names = [entry.name for entry in foreign.entries if entry.storage in damaged]
        more = f"; {len(names)} tensors are damaged: {some(names, 8)}" if len(names) > 1 else ""
        # Not by way of a local name: error and frame would hold each other, and with them all that is mapped.
        tensor = names[0] if names else None
        raise _mismatch(foreign.path, foreign.storages[bad[0]], crcs[bad[0]], more, tensor=tensor)


def wrong_crcs(foreign: ForeignFile, crcs: Sequence[int]) -> list[int]:
    """The numbers of the storages whose stated CRC is not that of the bytes read."""
    return [
        number
        for number, (storage, crc) in enumerate(zip(foreign.storages, crcs, strict=True))
        if storage.crc is not None and storage.nbytes and storage.crc != crc
    ]


def check_others(foreign: ForeignFile, source: Source, *, threads: int) -> None:
    """Raise DamagedError unless the records that no tensor lies in are what their CRC-32s say."""
    check_records(foreign.others, source, threads=threads, more="; no tensor lies in it")
    check_records(foreign.around, source, threads=threads, more=", which are those of several tensors")


def check_records(records: Iterable[ForeignStorage], source: Source, *, threads: int, more: str = "") -> None:
    """Sum records, and raise DamagedError for the first that is not what its CRC-32 says.

    Args:
        records: Those without bytes or without a CRC are passed over.
        source: The file they are in.
        threads: Worker threads.
        more: What to add to the message.

    Raises:
        DamagedError, CheckpointIOError
    """
    every = [record for record in records if record.nbytes and record.crc is not None]
    for record in every:
        if record.full is not None:
            crc = inflated_crc(source, record.offset, record.nbytes, record.full, name=record.key)
            if crc != record.crc:
                raise _mismatch(source.path, record, crc, more)
    stated = [record for record in every if record.full is None]

    def wrong(records: Sequence[ForeignStorage]) -> list[tuple[ForeignStorage, int]]:
        moved = sum_parts(source, [Move(record.offset, 0, record.nbytes) for record in records], threads=threads)
        for fault in moved.faults:
            source.raise_fault(records[fault.move].offset + fault.offset, fault.errno)
        return [(record, crc) for record, crc in zip(records, moved.crcs, strict=True) if record.crc != crc]

    bad = until_right(source, wrong(stated), lambda bad: wrong([record for record, _ in bad]))
    if bad:
        raise _mismatch(source.path, *bad[0], more)


def _mismatch(path: str, record: ForeignStorage, crc: int, more: str, *, tensor: str | None = None) -> DamagedError:
    return DamagedError(
        f"the CRC-32 of record {record.key} does not match its {record.nbytes} bytes{more}",
        path=path,
        offset=record.offset,
        tensor=tensor,
        expected=f"{record.crc:08x}",
        actual=f"{crc:08x}",
        next_step=f"fastckpt salvage {quoted(path)}",
    )


def is_verified(foreign: ForeignFile) -> bool:
    """Whether the file states a CRC for every byte of its tensors."""
    return all(storage.crc is not None for storage in foreign.storages if storage.nbytes)
