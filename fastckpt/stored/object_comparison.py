"""Objects that are not understood, in two checkpoints: compared by what they are made of and by their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError
from fastckpt.foreign.model import ForeignStorage
from fastckpt.foreign.object_parts import ObjectParts, object_parts
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.opened import Opened

_PIECE: Final = 2**20
"""Bytes of each file that are held at once."""


@dataclass(frozen=True, slots=True)
class ObjectDifference:
    """What was found about one object.

    Attributes:
        status: ``identical``, ``differs``, ``damaged``, ``unread`` (only the structure was wanted), or ``unknown``:
            it cannot be compared.
        reason: Why, unless it is identical.
        error: The damage that kept it from being compared.
    """

    status: str
    reason: str = ""
    error: FastckptError | None = None


def compare_objects(a: Opened, b: Opened, *, structure_only: bool, threads: int) -> dict[str, ObjectDifference]:
    """Compare all objects of two checkpoints that are not understood, by their places.

    An object is what the pickle puts into it, and all bytes of the storages
    that this names. Memory: a piece of 1 MiB of each file.
    """
    sides = _Side(a), _Side(b)
    ours, theirs = sides[0].objects, sides[1].objects
    result: dict[str, ObjectDifference] = {}
    for place in ours | theirs:
        one, other = ours.get(place), theirs.get(place)
        if one is None or other is None:
            alone = sides[one is None]
            without = sides[one is not None]
            result[place] = _alone(alone, without)
        else:
            result[place] = _compare(sides, one, other, structure_only=structure_only, threads=threads)
    return result


class _Side:
    def __init__(self, file: Opened) -> None:
        self.file = file
        self.objects: dict[str, ObjectParts] = {}
        self.storages: dict[str, ForeignStorage] = {}
        if isinstance(file, OpenedForeign):
            foreign = file.foreign
            self.objects = object_parts(foreign.objects)
            known = [*foreign.storages, *foreign.others]
            # In a file of several archives, one key can stand for several storages.
            times = Counter(storage.key for storage in known)
            self.storages = {storage.key: storage for storage in known if times[storage.key] == 1}

    def storage(self, key: str) -> ForeignStorage | None:
        return self.storages.get(f"data/{key}" if self.file.format == "torch-zip" else key)


def _alone(having: _Side, lacking: _Side) -> ObjectDifference:
    if lacking.file.format == "safetensors":
        return ObjectDifference("unknown", "a .safetensors cannot hold it")
    return ObjectDifference("differs", f"only in {having.file.path}")


def _compare(
    sides: tuple[_Side, _Side], one: ObjectParts, other: ObjectParts, *, structure_only: bool, threads: int
) -> ObjectDifference:
    if one.digest is None or other.digest is None:
        return ObjectDifference("unknown", "it is nested too deep to be compared")
    if one.digest != other.digest:
        return ObjectDifference("differs", "it is made of other values")
    if structure_only and one.storages:
        return ObjectDifference("unread", "its bytes were not read")
    for keys in zip(one.storages, other.storages, strict=True):
        a, b = (side.storage(key) for side, key in zip(sides, keys, strict=True))
        if a is None or b is None:
            return ObjectDifference("unknown", f"its bytes ({keys[0]}) are not to be found")
        try:
            if not _equal(sides, a, b, threads):
                return ObjectDifference("differs", f"other bytes in {a.key}")
        except (DamagedError, CheckpointIOError) as error:
            return ObjectDifference("damaged", error.message, error)
    return ObjectDifference("identical")


def _equal(sides: tuple[_Side, _Side], a: ForeignStorage, b: ForeignStorage, threads: int) -> bool:
    reads: list[Callable[[int, int], bytes]] = []
    for side, stored in zip(sides, (a, b), strict=True):
        file = side.file
        assert isinstance(file, OpenedForeign), "only these have objects"
        file.prove_stored(stored, threads=threads)
        reads.append(lambda at, size, file=file, stored=stored: file.source.read(stored.offset + at, size))  # type: ignore[misc]
    if a.nbytes != b.nbytes:
        return False
    pieces = ((at, min(_PIECE, a.nbytes - at)) for at in range(0, a.nbytes, _PIECE))
    return all(reads[0](*piece) == reads[1](*piece) for piece in pieces)
