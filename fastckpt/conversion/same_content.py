"""Does a ``.fckpt`` hold exactly what another file holds? Compared byte by byte, on both sides.

This is how a finished conversion is recognised when a killed run is started
again, and what a source file must pass before it is deleted.
"""

from __future__ import annotations

from typing import NamedTuple

from fastckpt.conversion.export import first_difference
from fastckpt.errors import UnsupportedStateError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.source_section import TORCH_KINDS, Segment, source_file
from fastckpt.foreign.checks import is_verified
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.layout.tree import encode_tree
from fastckpt.surveying.sealed import find_standing


class Match(NamedTuple):
    """A pair of files that hold the same.

    Attributes:
        kind: What the file that is not a ``.fckpt`` is: ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        exact: Whether the ``.fckpt`` gives that file back byte for byte.
        encoded: Whether the ``.fckpt`` uses a codec.
        verified: Whether the other file has a checksum for every byte of its tensors, or a seal beside it does.
        nbytes: Bytes of tensor data.
        tensors: How many tensors.
    """

    kind: str
    exact: bool
    encoded: bool
    verified: bool
    nbytes: int
    tensors: int


def match(checkpoint: str, path: str, *, cold: bool = False) -> Match | None:
    """Compare a ``.fckpt`` with a ``.pt`` or ``.safetensors`` file.

    Args:
        checkpoint: The ``.fckpt``.
        path: The other file.
        cold: Read both from disk, whatever the page cache holds of them.

    Returns:
        None if they differ in anything but how they are written.

    Raises:
        DamagedError: One of them is damaged; ``error.path`` says which.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError
    """
    with CheckpointFile(checkpoint) as file, Source(path) as other:
        foreign = open_foreign(other)
        file.checked_entries()
        if cold:
            for opened in (file.source, other):
                opened.drop_cache()
        kept = source_file(file)
        exact = kept is not None and kept.kind == foreign.kind and kept.size == other.size
        if exact:
            assert kept is not None
            exact = first_difference(file, other, literals=kept, segments=kept.segments) is None
        if not exact:
            segments = _same_structure(file, foreign)
            if segments is None or first_difference(file, other, literals=[], segments=segments) is not None:
                return None
        nbytes = sum(place.nbytes for place in file.manifest.storages)
        encoded = not all(record.is_raw for record in file.records)
        verified = is_verified(foreign) or _is_as_sealed(other)
        return Match(foreign.kind, exact, encoded, verified, nbytes, len(foreign.entries))


def _is_as_sealed(source: Source) -> bool:
    standing, _ = find_standing(source, threads=reading_threads(source, None))
    return standing is not None and standing.is_as_sealed


def _same_structure(file: CheckpointFile, foreign: ForeignFile) -> list[Segment] | None:
    """Where the storages of the checkpoint stand in the other file, if both hold the same tensors and values."""
    if foreign.opaque:
        return None  # What is not understood is the same only if all bytes are.
    ours, theirs = list(file.manifest.entries), {entry.name: entry for entry in foreign.entries}
    place_of: dict[int, int] = {}
    for entry in ours:
        other = theirs.get(entry.name)
        if other is None or entry._replace(storage=0) != other._replace(storage=0):
            return None
        if place_of.setdefault(entry.storage, other.storage) != other.storage:
            return None
    places = file.manifest.storages
    if len(ours) != len(theirs) or any(places[a].nbytes != foreign.storages[b].nbytes for a, b in place_of.items()):
        return None
    # A .safetensors has no nesting and no order of its own; in a .pt these must be the same.
    if foreign.kind in TORCH_KINDS:
        try:
            tree = encode_tree(foreign.tree)
        except UnsupportedStateError:
            return None
        if tree != file.manifest.tree or list(theirs) != [entry.name for entry in ours]:
            return None
    stored = [(a, foreign.storages[b]) for a, b in place_of.items() if places[a].nbytes]
    return [Segment(storage.offset, a, storage.nbytes, storage.unit) for a, storage in stored]
