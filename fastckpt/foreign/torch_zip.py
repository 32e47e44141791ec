"""Files that torch.save writes since version 1.6: zip archives of a pickle and raw storages."""

from __future__ import annotations

import zlib
from typing import Final

from fastckpt.errors import DamagedError, NotACheckpointError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.torch_state import TorchState, missing_storages, read_state
from fastckpt.foreign.zip_records import ZipArchive, ZipRecord, read_archives
from fastckpt.io.source import Source
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import map_tensors

MAX_PICKLE_SIZE: Final = 2**31
"""Bytes of a pickle that is still read; it is held in memory."""
_MAX_TEXT_RECORD: Final = 4096


def open_torch_zip(source: Source) -> ForeignFile:
    """Read the structure of a file of torch zip archives; no storage is read.

    Several archives one behind the other, as several calls of torch.save into
    one file object leave them, are one state: the list of what they hold.

    Raises:
        DamagedError: The file is cut, its pickle is damaged, or storages are missing.
        UnsupportedStateError: TorchScript, big-endian data, compressed records.
        NotACheckpointError: A zip archive without the records of torch.
    """
    archives = read_archives(source)
    files = [_open_archive(source, archive) for archive in archives]
    file = files[0] if len(files) == 1 else _join(source, files)
    file.archives = archives
    return file


def _open_archive(source: Source, archive: ZipArchive) -> ForeignFile:
    prefix = _prefix(archive.records)
    records = {name.removeprefix(f"{prefix}/"): record for name, record in archive.records.items()}
    if "constants.pkl" in records or any(name.startswith("code/") for name in records):
        raise UnsupportedStateError(
            "this is a TorchScript archive (torch.jit.save): it holds a program, not only tensors",
            next_step="load it with torch.jit.load and save its state_dict",
        )
    if "version" in records:
        _read_record(source, records["version"], limit=_MAX_TEXT_RECORD)
    order = _read_record(source, records["byteorder"], limit=_MAX_TEXT_RECORD) if "byteorder" in records else b"little"
    if order != b"little":
        raise UnsupportedStateError(
            f"the tensors are stored in {order[:20]!r} byte order; fastckpt reads little-endian files",
            next_step="load it with torch and save it again on a little-endian machine",
        )
    pickle = _read_record(source, records["data.pkl"], limit=MAX_PICKLE_SIZE)
    state, end = read_state(pickle)
    if end != len(pickle):
        offset = records["data.pkl"].offset
        raise DamagedError(f"{len(pickle) - end} bytes follow the pickle in data.pkl", offset=offset)
    _check_storages(state, records)
    used = [f"data/{storage.key}" for storage in state.storages]
    others = records.keys() - set(used)
    return ForeignFile(
        path=source.path,
        kind="torch-zip",
        size=source.size,
        tree=state.tree,
        entries=state.entries,
        storages=[_storage(key, records[key]) for key in used],
        prefix=prefix,
        opaque=state.opaque,
        objects=state.objects,
        locations=state.locations,
        others=[_storage(key, record) for key, record in records.items() if key in others],
    )


def _storage(key: str, record: ZipRecord) -> ForeignStorage:
    # A writer that does not compute the CRC leaves 0 in its place.
    crc = None if record.crc == 0 and record.size else record.crc
    return ForeignStorage(key, record.offset, record.size, crc)


def _join(source: Source, files: list[ForeignFile]) -> ForeignFile:
    """The archives of a file as one whose state is the list of theirs."""
    trees: list[object] = []
    joined = ForeignFile(source.path, "torch-zip", source.size, trees, [], [])
    for number, file in enumerate(files):
        first, storages = len(joined.entries), len(joined.storages)
        trees.append(map_tensors(file.tree, lambda ref, first=first: TensorRef(first + ref.entry)))  # type: ignore[misc]
        alone = type(file.tree) is TensorRef
        joined.entries += [
            entry._replace(name=f"{number}" if alone else f"{number}.{entry.name}", storage=storages + entry.storage)
            for entry in file.entries
        ]
        joined.storages += file.storages
        joined.others += file.others
        joined.objects += [(f"{number}.{place}", value) for place, value in file.objects]
        joined.opaque += [(f"{number}.{place}", what) for place, what in file.opaque]
        for location, count in file.locations.items():
            joined.locations[location] = joined.locations.get(location, 0) + count
    return joined


def _prefix(records: dict[str, ZipRecord]) -> str:
    """The directory that ``data.pkl`` is in: the stem of the name that the file was saved under."""
    prefixes = [name[: -len("/data.pkl")] for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        raise UnsupportedStateError(f"the archive holds {len(prefixes)} checkpoints: {', '.join(prefixes[:5])}")
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
    raw = source.read(record.offset, record.size, what=f"record {record.name}")
    crc = zlib.crc32(raw)
    if record.crc not in (0, crc):
        raise DamagedError(
            f"the record {record.name} is damaged: its CRC-32 does not match",
            offset=record.offset,
            expected=f"{record.crc:#010x}",
            actual=f"{crc:#010x}",
        )
    return raw


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
