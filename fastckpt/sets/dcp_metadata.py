"""The ``.metadata`` of torch.distributed.checkpoint: which tensors there are, in which pieces, and where each piece is.

It is a plain pickle. It is read by the same machine as the pickle of a ``.pt``,
which imports nothing; all that is taken from it are names and whole numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise, product
from typing import Any, Final

from fastckpt.errors import DamagedError, errors_about
from fastckpt.foreign.model import Opaque
from fastckpt.foreign.pickle_reader import KEY, PickleReader
from fastckpt.foreign.torch_semantics import TorchSemantics
from fastckpt.io.open_source import open_source
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.tree import DTypeRef, SizeRef
from fastckpt.remote.path import Place
from fastckpt.sets.model import Piece

NAME: Final = ".metadata"
MAX_SIZE: Final = 1 << 30
"""Bytes of a ``.metadata`` that are read: some hundred for each piece of a tensor."""
_UNPLACED: Final = 1000
MAX_DIMS: Final = 64
"""torch has no tensor of more."""
MAX_EXTENT: Final = 1 << 63
_MAX_UNEVEN: Final = 4
"""Dimensions along which pieces that lie in no grid may begin in different places."""
_NAMED: Final = 64
"""Pieces of a tensor among which the two that overlap are looked for."""
_MODULE: Final = "torch.distributed.checkpoint"


@dataclass(slots=True)
class GlobalTensor:
    """A tensor as a whole: ``chunks`` are ``(offsets, sizes)`` of its pieces."""

    dtype: str
    shape: tuple[int, ...]
    chunks: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    requires_grad: bool = False


@dataclass(slots=True)
class Metadata:
    """What a ``.metadata`` says.

    Attributes:
        tensors: Each tensor by its flat name.
        objects: The flat names of all that is no tensor.
        pieces: Where each piece of them is.
        paths: The keys on the way to each name, where they were kept.
    """

    tensors: dict[str, GlobalTensor]
    objects: list[str]
    pieces: list[Piece]
    paths: dict[str, tuple[Any, ...]]


def read_metadata(place: Place) -> Metadata:
    """What the ``.metadata`` at ``place`` says.

    Raises:
        DamagedError: It is cut, or says what it cannot mean.
        UnsupportedStateError: It uses what such a file never does.
        CheckpointIOError: It cannot be read.
    """
    path = os.fspath(place)
    with open_source(place) as source:
        if source.size > MAX_SIZE:
            raise DamagedError(f"it has more than {MAX_SIZE} bytes, more than any file of its kind", path=path)
        data = bytes(source.read(0, source.size))
    with errors_about(path):
        root = PickleReader(data, TorchSemantics(len(data))).read()
        fields = _state(root, "Metadata")
        pieces = list(_pieces(fields.get("storage_data")))
        # A list can stand in a pickle once and be meant many times: work is in proportion to what has a place.
        tensors, objects = _named(fields.get("state_dict_metadata"), most=2 * len(pieces) + _UNPLACED)
        return Metadata(tensors, objects, list(_described(pieces, tensors)), _paths(fields.get("planner_data")))


def _bad(what: str) -> DamagedError:
    return DamagedError(f"the .metadata is not one of torch.distributed.checkpoint: {what}")


def _state(value: object, name: str) -> dict[str, Any]:
    """The attributes of an object of one of DCP's own classes."""
    if not isinstance(value, Opaque) or value.is_class or not value.global_name.startswith(_MODULE):
        raise _bad(f"there is no {name} where there should be one")
    if value.global_name.rpartition(".")[2] != name or len(value.states) != 1 or not isinstance(value.states[0], dict):
        raise _bad(f"a {name} is not made as it should be")
    return value.states[0]


def _named(value: object, *, most: int) -> tuple[dict[str, GlobalTensor], list[str]]:
    if not isinstance(value, dict):
        raise _bad("it does not name any tensors")
    tensors: dict[str, GlobalTensor] = {}
    objects: list[str] = []
    for name, described in value.items():
        if not isinstance(name, str) or not isinstance(described, Opaque):
            raise _bad("a tensor has no name or no description")
        if described.global_name.endswith(".BytesStorageMetadata"):
            objects.append(name)
            continue
        fields = _state(described, "TensorStorageMetadata")
        chunks = fields.get("chunks")
        if not isinstance(chunks, list):
            raise _bad(f"{name} has no list of pieces")
        most -= len(chunks)
        if most < 0:
            raise _bad("its tensors have far more pieces than it has places for")
        properties = fields.get("properties")
        tensor = GlobalTensor(_dtype(properties), _extents(fields.get("size")), requires_grad=_wants_grad(properties))
        for chunk in chunks:
            piece = _state(chunk, "ChunkStorageMetadata")
            tensor.chunks.append((_extents(piece.get("offsets")), _extents(piece.get("sizes"))))
        tensors[name] = tensor
    return tensors, objects


def _dtype(properties: object) -> str:
    state = properties.states[0] if isinstance(properties, Opaque) and len(properties.states) == 1 else None
    values = list(state.values()) if isinstance(state, dict) else list(state) if isinstance(state, tuple) else []
    found = [value.name for value in values if isinstance(value, DTypeRef)]
    if len(found) != 1 or found[0] not in BY_NAME:
        raise _bad("a tensor has no dtype that can be read")
    return found[0]


def _wants_grad(properties: object) -> bool:
    """Whether it says that a tensor requires a gradient: the third of its fields."""
    state = properties.states[0] if isinstance(properties, Opaque) and len(properties.states) == 1 else None
    if isinstance(state, tuple):
        return len(state) > 2 and state[2] is True
    return isinstance(state, dict) and state.get("requires_grad") is True


def _extents(value: object) -> tuple[int, ...]:
    shape = value.shape if isinstance(value, SizeRef) else value
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS or not all(map(_is_extent, shape)):
        raise _bad("a shape is not made of whole numbers that a tensor can have")
    return shape


def _is_extent(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < MAX_EXTENT


def _pieces(value: object) -> Iterator[Piece]:
    """From index to place. An index is an object, so that the pairs stand beside the dict and not in it."""
    if not isinstance(value, dict):
        raise _bad("it does not say where anything is")
    for key, place in value.items():
        index = key.args[0] if isinstance(key, Opaque) and key.global_name == KEY and len(key.args) == 1 else key
        fields = _state(index, "MetadataIndex")
        info = _state(place, "_StorageInfo")
        name, offsets, file = fields.get("fqn"), fields.get("offset"), info.get("relative_path")
        offset, length = info.get("offset"), info.get("length")
        if not isinstance(name, str) or not isinstance(file, str) or not file:
            raise _bad("a piece has no name or no file")
        if not (isinstance(offset, int) and isinstance(length, int) and _is_extent(offset) and _is_extent(length)):
            raise _bad(f"{name} has no place in {file}")
        yield Piece(name, None if offsets is None else _extents(offsets), file, offset, length)


def _described(pieces: Sequence[Piece], tensors: Mapping[str, GlobalTensor]) -> Iterator[Piece]:
    """The pieces with the types and extents that their tensors have there."""
    chunks = {name: dict(tensor.chunks) for name, tensor in tensors.items()}
    for piece in pieces:
        sizes = chunks.get(piece.name, {}).get(piece.offsets or ())
        yield piece if sizes is None else piece._replace(dtype=tensors[piece.name].dtype, sizes=sizes)


def _paths(value: object) -> dict[str, tuple[Any, ...]]:
    if not isinstance(value, dict):
        return {}
    return {name: path for name, path in value.items() if isinstance(name, str) and isinstance(path, tuple)}


def uncovered(tensor: GlobalTensor) -> str | None:
    """What is wrong with the pieces of a tensor: a hole, an overlap, one that reaches beyond it; None if nothing is.

    Pieces that lie inside of the tensor, do not overlap and have together as
    many elements as it has leave no hole.
    """
    for offsets, sizes in tensor.chunks:
        fits = len(offsets) == len(sizes) == len(tensor.shape)
        if not fits or any(at + size > extent for at, size, extent in zip(offsets, sizes, tensor.shape, strict=True)):
            return f"a piece at {list(offsets)} of size {list(sizes)} reaches beyond its shape {list(tensor.shape)}"
    filled = [chunk for chunk in tensor.chunks if math.prod(chunk[1])]
    if sum(math.prod(sizes) for _, sizes in filled) != math.prod(tensor.shape):
        return f"its pieces do not have the {math.prod(tensor.shape)} elements of its shape {list(tensor.shape)}"
    return None if _is_grid(filled) else _overlap(filled, tensor.shape)


def _is_grid(pieces: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether the pieces are the cells of a grid: what every usual way to shard makes, and quick to see."""
    if len({offsets for offsets, _ in pieces}) != len(pieces):
        return False
    for dim in range(len(pieces[0][0]) if pieces else 0):
        extents = {(offsets[dim], sizes[dim]) for offsets, sizes in pieces}
        ordered = sorted(extents)
        if any(at + size != after for (at, size), (after, _) in pairwise(ordered)):
            return False
    return True


def _overlap(pieces: list[tuple[tuple[int, ...], tuple[int, ...]]], shape: tuple[int, ...]) -> str | None:
    """What overlaps of pieces that have as many elements as the shape, together; None if nothing does.

    Every piece has corners, and where all of them cover every place an odd number of times, the corners that an odd
    number of pieces have are those of the whole, and no others; the converse holds, too. With as many elements as the
    whole, an odd number everywhere is one. So the work is in proportion to the pieces.
    """
    uneven = [dim for dim, extent in enumerate(shape) if any(sizes[dim] != extent for _, sizes in pieces)]
    if len(uneven) > _MAX_UNEVEN:
        return f"it has {len(pieces)} pieces in no order along {len(uneven)} dimensions, and these are not compared"
    odd: set[tuple[int, ...]] = set()
    for offsets, sizes in [*pieces, ((0,) * len(shape), shape)]:
        odd.symmetric_difference_update(product(*((offsets[dim], offsets[dim] + sizes[dim]) for dim in uneven)))
    if not odd:
        return None
    if len(pieces) > _NAMED:
        return f"some of its {len(pieces)} pieces overlap"
    for (offsets, sizes), (others, more) in combinations(pieces, 2):
        if all(max(a, b) < min(a + m, b + n) for a, m, b, n in zip(offsets, sizes, others, more, strict=True)):
            return f"its pieces at {list(offsets)} and {list(others)} overlap"
    return "its pieces overlap"
