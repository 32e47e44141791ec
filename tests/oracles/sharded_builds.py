"""Checkpoints of any sharding, written in one process: our own sets, and what torch.distributed.checkpoint leaves."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import fastckpt
from fastckpt.sets.set_manifest import key_of

Box = tuple[tuple[int, ...], tuple[int, ...]]
Cut = Callable[[str, tuple[int, ...]], list[Box]]
"""The parts of a tensor of this name and shape: offsets and sizes."""


def whole(name: str, shape: tuple[int, ...]) -> list[Box]:
    """Not cut."""
    return [((0,) * len(shape), shape)]


def grid(*counts: int) -> Cut:
    """Cut into so many parts along each dimension, as even as they can be."""

    def cut(name: str, shape: tuple[int, ...]) -> list[Box]:
        if not all(shape):
            return whole(name, shape)
        along = [
            [(extent * k // n, extent * (k + 1) // n) for k in range(n)]
            for extent, n in zip(shape, (*counts, *[1] * len(shape)), strict=False)
        ]
        return [
            (tuple(low for low, _ in box), tuple(high - low for low, high in box))
            for box in product(*along)
            if all(high > low for low, high in box)
        ]

    return cut


def flat(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """The names, places and values of a state, as torch's planner has them."""
    if isinstance(state, dict):
        for key, item in state.items():
            yield from flat(item, (*path, key))
    else:
        yield ".".join(map(str, path)), path, state


def _parts(
    tensor: torch.Tensor, name: str, cut: Cut
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], torch.Tensor]]:
    for offsets, sizes in cut(name, tuple(tensor.shape)):
        yield offsets, sizes, tensor[tuple(slice(at, at + n) for at, n in zip(offsets, sizes, strict=True))]


def write_own(place: Path, state: Any, cut: Cut, *, ranks: int = 2, codec: str = "none", grad: bool = False) -> Path:
    """A set of ``.fckpt`` shards; the parts go to the ranks in turn."""
    place.mkdir(parents=True)
    shards: list[dict[str, dict[str, Any]]] = [{"tensors": {}, "objects": {}} for _ in range(ranks)]
    entries: dict[str, Any] = {}
    for number, (name, _, value) in enumerate(flat(state)):
        if not isinstance(value, torch.Tensor):
            shards[number % ranks]["objects"][name] = value
            entries[name] = {"object": number % ranks}
            continue
        parts = []
        for turn, (offsets, sizes, part) in enumerate(_parts(value, name, cut)):
            shard = (number + turn) % ranks
            shards[shard]["tensors"][key_of(name, offsets, sizes, value.shape)] = part.contiguous().clone()
            parts.append([offsets, sizes, shard])
        entries[name] = {"dtype": value.dtype, "shape": value.shape, "requires_grad": grad, "parts": parts}
    about: dict[str, Any] = {}
    for rank, shard_state in enumerate(shards):
        path = place / f"shard-0001-{rank:05d}.fckpt"
        fastckpt.save(shard_state, path, codec=codec, durable=False)
        about[path.name] = {"root": fastckpt.verify(path).root, "size": path.stat().st_size}
    manifest = {"fastckpt_set": 1, "shards": about, "entries": entries, "planner": {n: p for n, p, _ in flat(state)}}
    fastckpt.save(manifest, place / "set.fckpt", durable=False)
    return place


def write_pieces(
    place: Path, state: Any, cut: Cut, *, ranks: int = 2, strided: bool = False, grad: bool = False
) -> Path:
    """What torch.distributed.checkpoint leaves of so many ranks; ``strided`` pieces are columns first."""
    place.mkdir(parents=True)
    files = [io.BytesIO() for _ in range(ranks)]
    described: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}

    def put(rank: int, index: MetadataIndex, value: Any) -> None:
        begin = files[rank].tell()
        made = io.BytesIO()
        torch.save(value, made)
        files[rank].write(made.getvalue())
        places[index] = _StorageInfo(f"__{rank}_0.distcp", begin, len(made.getvalue()))

    for number, (name, _, value) in enumerate(flat(state)):
        if not isinstance(value, torch.Tensor):
            described[name] = BytesStorageMetadata()
            put(number % ranks, MetadataIndex(name), value)
            continue
        chunks = []
        for turn, (offsets, sizes, part) in enumerate(_parts(value, name, cut)):
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            own = part.mT.contiguous().mT if strided and part.dim() > 1 else part.contiguous()
            put((number + turn) % ranks, MetadataIndex(name, torch.Size(offsets), turn), own.clone())
        properties = TensorProperties(dtype=value.dtype, requires_grad=grad)
        described[name] = TensorStorageMetadata(properties, value.size(), chunks)
    for rank, file in enumerate(files):
        (place / f"__{rank}_0.distcp").write_bytes(file.getvalue())
    metadata = Metadata(described, {n: p for n, p, _ in flat(state)}, places)
    (place / ".metadata").write_bytes(pickle.dumps(metadata))
    return place
