"""Files that torch.save writes since version 1.6: a zip archive of a pickle and raw storages."""

from __future__ import annotations

import zlib
from typing import Final

from fastckpt.errors import DamagedError, NotACheckpointError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.torch_state import TorchState, missing_storages, read_state
from fastckpt.foreign.zip_records import ZipRecord, read_records
from fastckpt.io.source import Source

MAX_PICKLE_SIZE: Final = 2**31
"""Bytes of a pickle that is still read; it is held in memory."""
_MAX_TEXT_RECORD: Final = 4096


def open_torch_zip(source: Source) -> ForeignFile:
    """Read the structure of a torch zip archive; no storage is read.

    Raises:
        DamagedError: The file is cut, its pickle is damaged, or storages are missing.
        UnsupportedStateError: TorchScript, big-endian data, compressed records.
        NotACheckpointError: A zip archive without the records of torch.
    """
    records = read_records(source)
    prefix = _prefix(records)
    inner = {name[len(prefix) + 1 :]: record for name, record in records.items() if name.startswith(prefix + "/")}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise UnsupportedStateError(
            "this is a TorchScript archive (torch.jit.save): it holds a program, not only tensors",
            next_step="load it with torch.jit.load and save its state_dict",
        )
    if "version" in inner:
        _read_record(source, inner["version"], limit=_MAX_TEXT_RECORD)
    byteorder = _read_record(source, inner["byteorder"], limit=_MAX_TEXT_RECORD) if "byteorder" in inner else b"little"
    if byteorder != b"little":
        raise UnsupportedStateError(
            f"the tensors are stored in {byteorder[:20]!r} byte order; fastckpt reads little-endian files",
            next_step="load it with torch and save it again on a little-endian machine",
        )
    pickle = _read_record(source, inner["data.pkl"], limit=MAX_PICKLE_SIZE)
    state, end = read_state(pickle)
    if end != len(pickle):
        raise DamagedError(f"{len(pickle) - end} bytes follow the pickle in data.pkl", offset=inner["data.pkl"].offset)
    _check_storages(state, inner)
    storages = []
    for storage in state.storages:
        record = inner[f"data/{storage.key}"]
        # A writer that does not compute the CRC leaves 0 in its place.
        crc = None if record.crc == 0 and record.size else record.crc
        storages.append(ForeignStorage(f"data/{storage.key}", record.offset, record.size, crc))
    return ForeignFile(
        path=source.path,
        kind="torch-zip",
        size=source.size,
        tree=state.tree,
        entries=state.entries,
        storages=storages,
        prefix=prefix,
        opaque=state.opaque,
        locations=state.locations,
    )


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


def _check_storages(state: TorchState, inner: dict[str, ZipRecord]) -> None:
    """Raise DamagedError unless every storage the pickle refers to is there in its size."""
    missing = []
    wrong = []
    for key, storage in state.all_storages.items():
        record = inner.get(f"data/{key}")
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
