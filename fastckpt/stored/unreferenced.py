"""What a checkpoint keeps that no tensor lies in, in two checkpoints: compared by its names and its bytes.

Such are storages and records that nothing refers to, the bytes of objects that are not
understood, and the program of an archive. A record that says something of the archive
only, and the pickle, which is compared as the structure, are none of it. The key of a
storage is no name where another format is on the other side: a conversion does not keep it. Nor is it one of a
checkpoint of several files: another sharding has others.
"""

from __future__ import annotations

import bisect
import os
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import xxhash

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.foreign.accounting import is_formality
from fastckpt.foreign.torch_zip import name_in_row
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.object_comparison import ObjectDifference
from fastckpt.stored.opened import Opened, OpenedFile

_PIECE: Final = 2**20
_LEGACY: Final = "torch-legacy"


class _Part(NamedTuple):
    """Attributes: its name in the file; whether it is a storage; its size and digest; or why it cannot be read."""

    name: str
    is_storage: bool
    content: tuple[int, str]
    error: str = ""


def compare_unreferenced(a: Opened, b: Opened, *, threads: int) -> dict[str, ObjectDifference]:
    """Compare all that no tensor lies in, by its name in A, or of what only B has, in B."""
    ours, theirs = list(_parts(a, threads)), list(_parts(b, threads))
    alike = a.format == b.format and isinstance(a, OpenedFile)
    has_keys = alike and _keeps_keys(a) and _keeps_keys(b)
    if a.format == b.format == _LEGACY:
        has_keys = _names(ours) == _names(theirs)

    def name_of(part: _Part) -> str:
        return part.name if has_keys or not part.is_storage else ""

    equal = Counter((name_of(part), part.content) for part in ours)
    equal &= Counter((name_of(part), part.content) for part in theirs)
    same: dict[str, ObjectDifference] = {}
    other: dict[str, ObjectDifference] = {}
    damaged: dict[str, ObjectDifference] = {}
    for parts, path, left in ((ours, b.path, equal.copy()), (theirs, a.path, equal.copy())):
        for part in parts:
            place = name_of(part), part.content
            if part.error:
                damaged.setdefault(part.name, ObjectDifference("damaged", part.error))
            elif left[place]:
                left[place] -= 1
                if parts is ours:
                    same[part.name] = ObjectDifference("identical")
            elif alike or part.is_storage:
                what = "this name and these bytes" if name_of(part) else "these bytes"
                other.setdefault(part.name, ObjectDifference("differs", f"nothing in {path} has {what}"))
            else:
                other.setdefault(part.name, ObjectDifference("unknown", f"where {path} has it cannot be told"))
    return same | other | damaged


def _keeps_keys(file: Opened) -> bool:
    """Whether another save has the same keys: those of a legacy file are addresses, and storages in their order."""
    original = file.original if isinstance(file, OpenedFckpt) else None
    return file.format != _LEGACY and (original is None or original[0] != _LEGACY)


def _names(parts: list[_Part]) -> set[str]:
    return {part.name for part in parts if part.is_storage}


def _parts(checkpoint: Opened, threads: int) -> Iterator[_Part]:
    for file, used in checkpoint.files():
        start = "" if file is checkpoint else f"{os.path.basename(file.path)}: "
        yield from (part._replace(name=start + part.name) for part in _parts_of(file, used, threads))


def _parts_of(file: OpenedFile, used: set[int], threads: int) -> Iterator[_Part]:
    for number, nbytes in enumerate(file.storage_sizes):
        if number not in used:
            yield _storage(file, number, nbytes, threads)
    if not isinstance(file, OpenedForeign):
        return
    begins = [archive.begin for archive in file.foreign.archives]
    for record in file.foreign.others:
        is_folder = record.key[-1:] in ("", "/") and not record.nbytes
        if is_formality(record) or record.key == "data.pkl" or is_folder:
            continue
        name = record.key
        if len(begins) > 1:
            name = name_in_row(bisect.bisect_right(begins, record.offset) - 1, name, alone=False)
        is_storage = file.foreign.is_storage(record)
        try:
            file.prove_stored(record, threads=threads)
            digest = xxhash.xxh3_128()
            for start in range(record.offset, record.offset + record.nbytes, _PIECE):
                digest.update(file.source.read(start, min(_PIECE, record.offset + record.nbytes - start)))
        except (DamagedError, CheckpointIOError) as error:
            yield _Part(name, is_storage, (0, ""), error.message)
        else:
            yield _Part(name, is_storage, (record.nbytes, digest.hexdigest()))


def _storage(file: OpenedFile, number: int, nbytes: int, threads: int) -> _Part:
    name = f"storage {number}"
    digest = xxhash.xxh3_128()
    try:
        file.prove(number, threads=threads)
        for start in range(0, nbytes, _PIECE):
            digest.update(file.read(number, start, min(start + _PIECE, nbytes)))
    except (DamagedError, CheckpointIOError) as error:
        return _Part(name, True, (0, ""), error.message)
    return _Part(name, True, (nbytes, digest.hexdigest()))
