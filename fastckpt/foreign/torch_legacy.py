"""Files that torch wrote before version 1.6, and still writes on request: five pickles, then raw storages.

magic number | protocol version | system info | the object | list of storage keys |
for each key: its length in elements (int64), its bytes
"""

from __future__ import annotations

import struct
from typing import Any, Final

from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.pickle_input import PickleCutError
from fastckpt.foreign.sniff import LEGACY_MAGIC
from fastckpt.foreign.torch_state import TorchState, missing_storages, read_state
from fastckpt.foreign.torch_zip import MAX_PICKLE_SIZE
from fastckpt.io.source import Source

LEGACY_PROTOCOL: Final = 1001
"""torch.serialization.PROTOCOL_VERSION."""
_FIRST_WINDOW: Final = 4 * 2**20
_WINDOW_GROWTH: Final = 4
_LENGTH: Final = struct.Struct("<q")


def open_torch_legacy(source: Source) -> ForeignFile:
    """Read the structure of a legacy torch file; no storage is read.

    Raises:
        DamagedError: The file is cut or its pickles are damaged.
        UnsupportedStateError: Pickles of a protocol that is not known, or longer than is read.
    """
    state, keys, at = _read_pickles(source)
    ranges, end = _storage_ranges(source, state, keys, at)
    missing = [key for key in state.all_storages if key not in ranges]
    if missing:
        raise missing_storages(state, missing, total=len(state.all_storages), what="not listed in the file")
    return legacy_file(source, state, ranges, end)


def legacy_file(source: Source, state: TorchState, places: dict[str, ForeignStorage], end: int) -> ForeignFile:
    """The structure of a file that torch wrote before zip archives, from its object and where its storages lie."""
    used = {storage.key for storage in state.storages}
    return ForeignFile(
        path=source.path,
        kind="torch-legacy",
        size=source.size,
        tree=state.tree,
        entries=state.entries,
        storages=[places[storage.key] for storage in state.storages],
        opaque=state.opaque,
        locations=state.locations,
        others=[place for key, place in places.items() if key not in used],
        end=end,
    )


def _read_pickles(source: Source) -> tuple[TorchState, list[str], int]:
    """The object, the storage keys in file order, and where the first storage begins.

    Nothing says how long the pickles are, so ever larger beginnings of the
    file are tried; almost always the first is enough.
    """
    window = _FIRST_WINDOW
    while True:
        size = min(window, source.size, MAX_PICKLE_SIZE)
        head = source.read(0, size, what="pickles")
        try:
            return _parse_pickles(head)
        except PickleCutError as error:
            if size == source.size:
                raise DamagedError(
                    f"the file is cut: it has {source.size} bytes and ends inside the pickles that name the tensors"
                ) from error
            if size == MAX_PICKLE_SIZE:
                raise UnsupportedStateError(f"the pickles are longer than {MAX_PICKLE_SIZE} bytes") from error
        window *= _WINDOW_GROWTH


def _parse_pickles(head: bytes) -> tuple[TorchState, list[str], int]:
    magic, at = read_state(head)
    protocol, at = read_state(head, at)
    # What it says of the machine does not matter: torch writes little-endian storages on any.
    _, at = read_state(head, at)
    if magic.tree != LEGACY_MAGIC:
        raise DamagedError("the magic number of a legacy torch file is not there", offset=0)
    if protocol.tree != LEGACY_PROTOCOL:
        raise DamagedError(
            "the protocol version of a legacy torch file is none that torch ever wrote",
            offset=0,
            expected=LEGACY_PROTOCOL,
            actual=repr(protocol.tree)[:40],
        )
    state, at = read_state(head, at)
    key_state, at = read_state(head, at)
    keys: Any = key_state.tree
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise DamagedError("the list of storage keys is not a list of texts", offset=at)
    if len(set(keys)) != len(keys):
        raise DamagedError("the list of storage keys has one key twice", offset=at)
    return state, keys, at


def _storage_ranges(
    source: Source, state: TorchState, keys: list[str], at: int
) -> tuple[dict[str, ForeignStorage], int]:
    """Where each storage lies, and where the last one ends.

    Raises:
        DamagedError: One is cut off or has another length than the pickle says.
    """
    ranges = {}
    source.bring_near()  # The length of a storage says where that of the next one is.
    for number, key in enumerate(keys):
        storage = state.all_storages.get(key)
        if storage is None:
            raise DamagedError(f"the storage {key[:80]!r} belongs to no tensor", offset=at)
        if at + _LENGTH.size + storage.nbytes > source.size:
            error = missing_storages(state, keys[number:], total=len(keys), what="cut off at the end of the file")
            error.offset, error.expected, error.actual = at, f"{_LENGTH.size + storage.nbytes} bytes", source.size - at
            raise error
        (numel,) = _LENGTH.unpack(source.read(at, _LENGTH.size, what="length of a storage"))
        if numel * storage.type.itemsize != storage.nbytes:
            error = missing_storages(state, [key], total=len(keys), what="of another size than the pickle says")
            error.offset, error.expected, error.actual = at, storage.nbytes, numel * storage.type.itemsize
            raise error
        ranges[key] = ForeignStorage(key, at + _LENGTH.size, storage.nbytes, None)
        at += _LENGTH.size + storage.nbytes
    return ranges, at
