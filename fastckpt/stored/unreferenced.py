"""What a checkpoint keeps that no tensor lies in, in two checkpoints: compared by its bytes.

Such are storages and records that nothing refers to, the bytes of objects that are not
understood, and the program of an archive. A record that says something of the archive
only, and the pickle, which is compared as the structure, are none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import xxhash

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.foreign.accounting import is_formality
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.object_comparison import ObjectDifference
from fastckpt.stored.opened import Opened

_PIECE: Final = 2**20


class _Part(NamedTuple):
    """Attributes: its name in the file; whether it is a storage; its size and digest; or why it cannot be read."""

    name: str
    is_storage: bool
    content: tuple[int, str]
    error: str = ""


def compare_unreferenced(a: Opened, b: Opened, *, threads: int) -> dict[str, ObjectDifference]:
    """Compare all that no tensor lies in, whatever its name: a conversion keeps the bytes of a storage, not its key."""
    ours, theirs = list(_parts(a, threads)), list(_parts(b, threads))
    result = {part.name: ObjectDifference("damaged", part.error) for part in (*ours, *theirs) if part.error}
    left_a = Counter(part.content for part in ours)
    left_b = Counter(part.content for part in theirs)
    equal = left_a & left_b
    for parts, other, left in ((ours, b, equal.copy()), (theirs, a, equal.copy())):
        for part in parts:
            if part.error:
                continue
            if left[part.content]:
                left[part.content] -= 1
                result.setdefault(part.name, ObjectDifference("identical"))
            elif part.is_storage or a.format == other.format == b.format:
                result[part.name] = ObjectDifference("differs", f"nothing in {other.path} has these bytes")
            else:
                result[part.name] = ObjectDifference("unknown", f"where {other.path} has it cannot be told")
    return result


def _parts(file: Opened, threads: int) -> Iterator[_Part]:
    used = {entry.storage for entry in file.entries}
    for number, nbytes in enumerate(file.storage_sizes):
        if number not in used and nbytes:
            yield _storage(file, number, nbytes, threads)
    if not isinstance(file, OpenedForeign):
        return
    for record in file.foreign.others:
        if is_formality(record) or record.key == "data.pkl" or not record.nbytes:
            continue
        is_storage = file.foreign.is_storage(record)
        try:
            file.prove_stored(record, threads=threads)
            digest = xxhash.xxh3_128()
            for start in range(record.offset, record.offset + record.nbytes, _PIECE):
                digest.update(file.source.read(start, min(_PIECE, record.offset + record.nbytes - start)))
        except (DamagedError, CheckpointIOError) as error:
            yield _Part(record.key, is_storage, (0, ""), error.message)
        else:
            yield _Part(record.key, is_storage, (record.nbytes, digest.hexdigest()))


def _storage(file: Opened, number: int, nbytes: int, threads: int) -> _Part:
    name = f"storage {number}"
    digest = xxhash.xxh3_128()
    try:
        file.prove(number, threads=threads)
        for start in range(0, nbytes, _PIECE):
            digest.update(file.read(number, start, min(start + _PIECE, nbytes)))
    except (DamagedError, CheckpointIOError) as error:
        return _Part(name, True, (0, ""), error.message)
    return _Part(name, True, (nbytes, digest.hexdigest()))
