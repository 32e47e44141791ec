"""What torch.distributed.checkpoint writes: ``.metadata``, and a ``__R_N.distcp`` for each rank.

A ``.distcp`` has one archive, as torch.save writes it, for each piece of a
tensor and each object. FSDP2 and torchtitan save this way; torchtitan makes a
directory ``step-N`` for each step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

from fastckpt.errors import FastckptError
from fastckpt.io.there import size_there
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.sets.dcp_metadata import NAME, Metadata, read_metadata, uncovered
from fastckpt.sets.files_beside import files_beside
from fastckpt.sets.listing import Listing, is_file_name
from fastckpt.sets.model import CheckpointSet, Member, Piece, Problem, kind_of_fault
from fastckpt.sets.step_directories import checkpoints_in
from fastckpt.text import count_text, some

KIND: Final = "torch.distributed.checkpoint"
_SHARD: Final = r"__(\d+)_(\d+)\.distcp"


def recognise(listing: Listing) -> list[CheckpointSet]:
    """The steps below a directory, or the one checkpoint if the directory is one."""
    return checkpoints_in(listing, _is_one, _set)


def _is_one(listing: Listing) -> bool:
    return bool(listing.matching(_SHARD)) or (listing.is_file(NAME))


def _set(listing: Listing, step: int | None) -> CheckpointSet:
    checkpoint = CheckpointSet(KIND, listing.directory, step)
    path = listing.path(NAME)
    shards = [match[0] for match in listing.matching(_SHARD)]
    if NAME not in listing.names:
        message = f"{NAME}, which is written last and names every tensor, is not there: the save did not end"
        checkpoint.problems.append(Problem("missing", path, message))
    else:
        try:
            metadata = read_metadata(listing.place(NAME))
        except FastckptError as error:
            checkpoint.problems.append(Problem(kind_of_fault(error), path, f"{NAME}: {error.message}"))
        else:
            checkpoint.manifest = metadata
            _describe(checkpoint, listing, metadata)
            checkpoint.beside = [] if step is None else files_beside(listing, checkpoint.members)
            return checkpoint
    checkpoint.members += [Member(listing.place(name), _what(name)) for name in shards]
    checkpoint.beside = [] if step is None else files_beside(listing, checkpoint.members)
    return checkpoint


def _what(name: str) -> str:
    match = re.fullmatch(_SHARD, name)
    return f"shard of rank {match[1]}" if match is not None else "shard"


def _describe(checkpoint: CheckpointSet, listing: Listing, metadata: Metadata) -> None:
    """Members and problems, from what the metadata says."""
    by_file: dict[str, list[Piece]] = {}
    for piece in metadata.pieces:
        by_file.setdefault(piece.file, []).append(piece)
    metadata_path = listing.path(NAME)
    for file, pieces in sorted(by_file.items()):
        if not is_file_name(file):
            message = f"{NAME} names the file {file[:80]!r}, which is not beside it"
            checkpoint.problems.append(Problem("inconsistent", metadata_path, message))
            continue
        checkpoint.problems += _misplaced(listing, file, pieces)
        names = sorted({piece.name for piece in pieces if piece.name in metadata.tensors})
        checkpoint.members.append(Member(listing.place(file), _what(file), names, pieces=tuple(pieces)))
    there = {(piece.name, piece.offsets) for piece in metadata.pieces}
    for name, tensor in metadata.tensors.items():
        wrong = uncovered(tensor)
        gone = [offsets for offsets, _ in tensor.chunks if (name, offsets) not in there]
        if wrong is None and gone:
            wrong = f"nothing says where {count_text(len(gone), 'piece')} of it {'is' if len(gone) == 1 else 'are'}"
        if wrong is not None:
            checkpoint.problems.append(Problem("inconsistent", metadata_path, f"{name}: {wrong}", (name,)))
    known = {*metadata.tensors, *metadata.objects}
    strange = sorted({name for name, _ in there} - known)
    lost = sorted(name for name in metadata.objects if (name, None) not in there)
    if strange or lost:
        message = f"{NAME} contradicts itself about {some(strange + lost)}"
        checkpoint.problems.append(Problem("inconsistent", metadata_path, message, tuple(strange + lost)))
    for match in listing.matching(_SHARD):
        path = listing.path(match[0])
        # A rank with nothing of its own to write leaves an empty one.
        if match[0] not in by_file and size_there(listing.place(match[0])) != 0:
            message = f"{match[0]} is not named by {NAME}: it is of another save"
            checkpoint.problems.append(Problem("inconsistent", path, message, loss=False, exit_code=1))


def _misplaced(listing: Listing, file: str, pieces: list[Piece]) -> Iterator[Problem]:
    """Pieces that cannot be where the metadata says: beyond the end, one in another, or smaller than their elements.

    So no more memory is taken for the tensors than the files have bytes.
    """
    path = listing.path(file)
    size = size_there(listing.place(file))
    end = 0
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if piece.offset < end:
            what = "begins inside of the one before it"
        elif size is not None and piece.offset + piece.length > size:
            what = f"ends behind byte {size}, the last of the file"
        elif piece.dtype and math.prod(piece.sizes or ()) * BY_NAME[piece.dtype].itemsize > piece.length:
            what = f"has fewer bytes than a {piece.dtype}{list(piece.sizes or ())}"
        else:
            end = piece.offset + piece.length
            continue
        message = f"{file}: the piece of {piece.name} at byte {piece.offset} {what}"
        yield Problem("inconsistent", path, message, (piece.name,))
        return
