"""A ``.pt2`` as torch.export.save wrote it before torch 2.8: an archive with whole ``.pt`` files as its records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.zip_records import PACK_AGAIN, ZipArchive, ZipRecord, read_archive
from fastckpt.io.source import Source
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import map_tensors

OLD_EXPORT_PROGRAM: Final = "serialized_exported_program.json"
_STATES: Final = tuple(
    f"serialized_{what}.{suffix}" for what in ("state_dict", "constants") for suffix in ("pt", "json")
)
"""The records with tensors by name; torch 2.1 gave them the suffix of JSON. Example inputs are left to the program."""


def open_old_export(
    source: Source, archive: ZipArchive, open_archive: Callable[[Source, ZipArchive], ForeignFile]
) -> ForeignFile:
    """A program of torch.export: its weights and constants by name; the program itself is records like any other.

    Args:
        source: The file.
        archive: The archive that is all of it.
        open_archive: Reads one that torch.save wrote.

    Raises:
        DamagedError: A record is no archive, or one with tensors that is damaged.
        UnsupportedStateError: It was packed again with compression, or a name stands in two of its records.
    """
    tree: dict[object, object] = {}
    program = ForeignFile(source.path, "torch-zip", source.size, tree, [], [], program="torch.export")
    for name, record in archive.records.items():
        if name not in _STATES or not record.size:
            program.others.append(_place(name, record))
            continue
        file = open_archive(source, _inside(source, name, record))
        program.around.append(_place(name, record))
        _take_in(program, tree, name, file)
    return program


def _inside(source: Source, name: str, record: ZipRecord) -> ZipArchive:
    """The archive that a record is."""
    packed = UnsupportedStateError("this is a .pt2 that was packed with compression", next_step=PACK_AGAIN)
    if record.full is not None:
        raise packed
    inner = read_archive(source, record.offset + record.size)
    if inner.begin != record.offset:
        raise DamagedError(f"the record {name} is not one archive of torch.save", offset=record.offset)
    if any(each.full is not None for each in inner.records.values()):
        raise packed
    return inner


def _take_in(program: ForeignFile, tree: dict[object, object], name: str, file: ForeignFile) -> None:
    """Add what a record holds to the program."""
    if not isinstance(file.tree, dict):
        raise UnsupportedStateError(f"the record {name} holds no dict of tensors")
    first, storages = len(program.entries), len(program.storages)
    for key, node in file.tree.items():
        if key in tree:
            raise UnsupportedStateError(f"{key!r:.200} is both a weight and a constant")
        tree[key] = map_tensors(node, lambda ref: TensorRef(first + ref.entry))
    program.entries += [entry._replace(storage=storages + entry.storage) for entry in file.entries]
    program.storages += file.storages
    for storage in file.others:
        program.others.append(
            ForeignStorage(f"{name}/{storage.key}", storage.offset, storage.nbytes, storage.crc, storage.unit)
        )
    program.opaque += file.opaque
    for location, count in file.locations.items():
        program.locations[location] = program.locations.get(location, 0) + count


def _place(name: str, record: ZipRecord) -> ForeignStorage:
    return ForeignStorage(name, record.offset, record.size, record.crc, full=record.full)
