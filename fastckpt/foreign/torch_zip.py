"""Files that torch.save writes since version 1.6: zip archives of a pickle and raw storages."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

from fastckpt.constants import SALVAGE_KEY
from fastckpt.errors import DamagedError, NotACheckpointError, UnsupportedStateError
from fastckpt.foreign.byte_order import BIG, LITTLE, units_in
from fastckpt.foreign.deflated import inflate_file
from fastckpt.foreign.model import OUTSIDE, ForeignFile, ForeignStorage
from fastckpt.foreign.torch_export import EXPORT_CONSTANTS, EXPORT_WEIGHTS, read_exported
from fastckpt.foreign.torch_export_old import OLD_EXPORT_PROGRAM, open_old_export
from fastckpt.foreign.torch_state import TorchState, missing_storages, read_state
from fastckpt.foreign.zip_records import ZipArchive, ZipRecord, folders_of, read_archives
from fastckpt.io.anew import read_until
from fastckpt.io.source import Source
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import map_tensors
from fastckpt.layout.zip_layout import SALVAGE_RECORD
from fastckpt.text import some

MAX_PICKLE_SIZE: Final = 2**31
"""Bytes of a pickle that is still read; it is held in memory."""
_MAX_TEXT_RECORD: Final = 4096
_MAX_NOTE: Final = 2**24


def open_torch_zip(source: Source) -> ForeignFile:
    """Read the structure of a file of torch zip archives; no storage is read.

    Several archives one behind the other, as several calls of torch.save into
    one file object leave them, are one state: the list of what they hold.

    Raises:
        DamagedError: The file is cut, its pickle is damaged, or storages are missing.
        UnsupportedStateError: A zip bomb.
        NotACheckpointError: A zip archive without the records of torch.
    """
    archives = read_archives(source)
    if inflate_file(source, archives):
        archives = read_archives(source)
    files = [_open_archive(source, archive) for archive in archives]
    file = files[0] if len(files) == 1 else _join(source, files)
    file.archives = archives
    return file


def _open_archive(source: Source, archive: ZipArchive) -> ForeignFile:
    if OLD_EXPORT_PROGRAM in archive.records:
        return open_old_export(source, archive, _open_folder)
    return _open_folder(source, archive)


def _open_folder(source: Source, archive: ZipArchive) -> ForeignFile:
    prefix = _prefix(archive.records)
    # What stands outside of the folder has no name in it: such a record is never taken for one of the checkpoint.
    inside = f"{prefix}/"
    records = {
        name[len(inside) :] if name.startswith(inside) else f"{OUTSIDE}{name}": record
        for name, record in archive.records.items()
    }
    if "version" in records:
        _read_record(source, records["version"], limit=_MAX_TEXT_RECORD)
    order = _read_record(source, records["byteorder"], limit=_MAX_TEXT_RECORD) if "byteorder" in records else LITTLE
    if order not in (BIG, LITTLE):
        raise UnsupportedStateError(f"the tensors are stored in {order[:20]!r} byte order, which is not known")
    if EXPORT_WEIGHTS in records:
        if order == BIG:
            raise UnsupportedStateError("this is a .pt2 of a big-endian machine", next_step="read it with torch there")
        return _open_export(source, records, prefix)
    pickle = _read_record(source, records["data.pkl"], limit=MAX_PICKLE_SIZE)
    state, end = read_state(pickle)
    if end != len(pickle):
        offset = records["data.pkl"].offset
        raise DamagedError(f"{len(pickle) - end} bytes follow the pickle in data.pkl", offset=offset)
    _check_storages(state, records)
    used = [f"data/{storage.key}" for storage in state.storages]
    units = {f"data/{key}": unit for key, unit in units_in(state).items()} if order == BIG else {}
    others = records.keys() - set(used)
    return ForeignFile(
        path=source.path,
        kind="torch-zip",
        size=source.size,
        tree=state.tree,
        entries=state.entries,
        storages=[_storage(key, records[key], units.get(key, 1)) for key in used],
        prefix=prefix,
        opaque=state.opaque,
        locations=state.locations,
        others=[_storage(key, record, units.get(key, 1)) for key, record in records.items() if key in others],
        metadata={SALVAGE_KEY: _read_note(source, records[SALVAGE_RECORD])} if SALVAGE_RECORD in records else {},
        program="TorchScript" if is_torchscript(records) else "",
    )


def is_torchscript(names: Iterable[str]) -> bool:
    """Whether these records, without the folder that all are in, are those of torch.jit.save."""
    return any(name == "constants.pkl" or name.startswith("code/") for name in names)


def _open_export(source: Source, records: dict[str, ZipRecord], prefix: str) -> ForeignFile:
    """A program of torch.export: its weights and constants by name; the program itself is records like any other."""
    texts = {
        name: _read_record(source, records[name], limit=MAX_PICKLE_SIZE)
        for name in (EXPORT_WEIGHTS, EXPORT_CONSTANTS)
        if name in records
    }
    tensors = read_exported(texts, {name: record.size for name, record in records.items()})
    used = set(tensors.used)
    return ForeignFile(
        path=source.path,
        kind="torch-zip",
        size=source.size,
        tree=tensors.tree,
        entries=tensors.entries,
        storages=[_storage(key, records[key], 1) for key in tensors.used],
        prefix=prefix,
        opaque=tensors.opaque,
        others=[_storage(key, record, 1) for key, record in records.items() if key not in used],
        program="torch.export",
    )


def _read_note(source: Source, record: ZipRecord) -> str:
    """What salvage wrote about the file; nothing if that is damaged, which costs no tensor."""
    try:
        return _read_record(source, record, limit=_MAX_NOTE).decode("utf-8", "replace")
    except (DamagedError, UnsupportedStateError):
        return ""


def _storage(key: str, record: ZipRecord, unit: int) -> ForeignStorage:
    # A writer that does not compute the CRC leaves 0 in its place.
    crc = None if record.crc == 0 and record.size else record.crc
    return ForeignStorage(key, record.offset, record.size, crc, unit, record.full)


def _join(source: Source, files: list[ForeignFile]) -> ForeignFile:
    """The archives of a file as one whose state is the list of theirs."""
    trees: list[object] = []
    joined = ForeignFile(source.path, "torch-zip", source.size, trees, [], [])
    for number, file in enumerate(files):
        first, storages = len(joined.entries), len(joined.storages)
        trees.append(map_tensors(file.tree, lambda ref, first=first: TensorRef(first + ref.entry)))  # type: ignore[misc]
        alone = type(file.tree) is TensorRef
        joined.entries += [
            entry._replace(name=name_in_row(number, entry.name, alone=alone), storage=storages + entry.storage)
            for entry in file.entries
        ]
        joined.storages += file.storages
        joined.others += file.others
        joined.metadata |= file.metadata
        joined.program = joined.program or file.program
        joined.opaque += [(f"{number}.{place}", what) for place, what in file.opaque]
        for location, count in file.locations.items():
            joined.locations[location] = joined.locations.get(location, 0) + count
    return joined


def name_in_row(number: int, name: str, *, alone: bool) -> str:
    """The flat name of a tensor of the archive with this number, in the list of what several hold."""
    return f"{number}" if alone else f"{number}.{name}"


def _prefix(records: dict[str, ZipRecord]) -> str:
    """The directory that ``data.pkl`` is in: the stem of the name that the file was saved under."""
    prefixes = folders_of(records)
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        raise UnsupportedStateError(f"the archive holds {len(prefixes)} checkpoints: {some(prefixes, 5)}")
    if any(name.endswith("/data/0") for name in records):
        raise DamagedError("the archive holds storages but no data.pkl, which names them")
    if any(name.endswith(".npy") for name in records):
        raise NotACheckpointError("this is a numpy archive (.npz)", next_step="load it with numpy.load")
    raise NotACheckpointError(
        "this is a zip archive, but torch did not write it: it has no data.pkl",
        next_step="unpack it, then name the checkpoint file in it",
    )


def _read_record(source: Source, record: ZipRecord, *, limit: int) -> bytes:
    """The bytes of a small record, checked against its CRC-32."""
    if record.size > limit:
        raise UnsupportedStateError(
            f"the record {record.name} is too large to read", expected=f"at most {limit} bytes", actual=record.size
        )
    raw = read_until(
        source,
        lambda: source.read(record.offset, record.size, what=f"record {record.name}"),
        lambda raw: record.crc in (0, zlib.crc32(raw)),
    )
    crc = zlib.crc32(raw)
    if record.crc in (0, crc):
        return raw
    raise DamagedError(
        f"the record {record.name} is damaged: its CRC-32 does not match",
        offset=record.offset,
        expected=f"{record.crc:#010x}",
        actual=f"{crc:#010x}",
    )


def _check_storages(state: TorchState, records: dict[str, ZipRecord]) -> None:
    """Raise DamagedError unless every storage the pickle refers to is there in its size."""
    missing = []
    wrong = []
    for key, storage in state.all_storages.items():
        record = records.get(f"data/{key}")
        if record is None:
            missing.append(key)
        # torch counts whole elements, so the last bytes of an odd-sized storage are not in the count.
        elif not storage.nbytes <= record.size < storage.nbytes + storage.type.itemsize:
            wrong.append(key)
    total = len(state.all_storages)
    if missing:
        raise missing_storages(state, missing, total=total, what="missing, as an interrupted save leaves it")
    if wrong:
        raise missing_storages(state, wrong, total=total, what="of another size than the pickle says")
