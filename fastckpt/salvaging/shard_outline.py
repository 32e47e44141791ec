"""What a set should hold by what its shards say of themselves, where ``set.fckpt`` is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, Final

from fastckpt.constants import SET_OBJECTS, SET_SHARD_KEY, SET_TENSORS
from fastckpt.errors import DamagedError, FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.io.source import Source
from fastckpt.salvaging.set_fragments import Box, Outline, Wanted, box_at
from fastckpt.sets.dcp_metadata import GlobalTensor, uncovered
from fastckpt.sets.model import CheckpointSet, Member
from fastckpt.sets.set_manifest import SHARD, key_of

_MOST_CELLS: Final = 100_000
"""Cells of the grid that the parts of a tensor make; of a finer one, no missing part is named by itself."""


def outline_of_shards(checkpoint: CheckpointSet) -> Outline | None:
    """What the shards of the newest save of which every part is there say, else of the newest; None if none says any.

    The names are not nested, and of a shard that is gone nothing is known but what is missing of tensors in others.
    """
    generations: dict[int, list[Member]] = {}
    for member in checkpoint.members:
        match = SHARD.fullmatch(member.name)
        if match is not None:
            generations.setdefault(int(match[1]), []).append(member)
    found: list[Outline] = []
    for _, members in sorted(generations.items(), reverse=True):
        outline = _outline(members)
        whole = all(uncovered(tensor) is None for tensor in outline.tensors.values())
        for tensor in outline.tensors.values():
            tensor.chunks += list(_gaps(tensor))
        if outline.wanted and whole and not outline.unknown:
            return outline
        found += [outline] if outline.wanted else []
    return found[0] if found else None


def _outline(members: Sequence[Member]) -> Outline:
    outline = Outline({}, {}, is_of_shards=True)
    for member in members:
        try:
            with Source(member.path) as source:
                wanted = list(_said(CheckpointFile(source), outline.tensors))
        except FastckptError:
            outline.unknown.append(member.name)
            continue
        outline.wanted[member.name] = wanted
    return outline


def _said(file: CheckpointFile, tensors: dict[str, GlobalTensor]) -> Iterator[Wanted]:
    """The parts and objects of a shard; each part is added to its tensor. Raises DamagedError if it is none."""
    entries = {entry.name: entry for entry in file.checked_entries()}
    tree, parts = file.tree(), file.metadata().get(SET_SHARD_KEY)
    about: Any = parts.get(SET_TENSORS) if isinstance(parts, dict) else None
    if not isinstance(about, dict) or not isinstance(tree, dict) or not isinstance(tree.get(SET_OBJECTS), dict):
        raise DamagedError("this is no shard of a set")
    for key, said in about.items():
        entry = entries.get(f"{SET_TENSORS}.{key}")
        if entry is None or not _is_part(key, said, entry.shape):
            raise DamagedError("this shard does not say what its parts are parts of")
        name, offsets, shape = said
        tensor = tensors.setdefault(name, GlobalTensor(entry.dtype, shape))
        if (tensor.dtype, tensor.shape) == (entry.dtype, shape) and (offsets, entry.shape) not in tensor.chunks:
            tensor.chunks.append((offsets, entry.shape))
            yield Wanted(name, box_at(offsets, entry.shape), key)
    for name in tree[SET_OBJECTS]:
        yield Wanted(name, None, name)


def _is_part(key: object, said: object, sizes: tuple[int, ...]) -> bool:
    """Whether a shard says a name, offsets and a shape, by which the part is called as it is."""
    name, offsets, shape = said if isinstance(said, list) and len(said) == 3 else (None, None, None)
    if not isinstance(name, str) or not isinstance(offsets, tuple) or not isinstance(shape, tuple):
        return False
    numbers = all(type(number) is int and number >= 0 for number in (*offsets, *shape))
    return numbers and len(offsets) == len(shape) == len(sizes) and key == key_of(name, offsets, sizes, shape)


def _gaps(tensor: GlobalTensor) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The cells that no part fills, in the grid that the parts make; nothing of parts that overlap."""
    boxes = [box_at(*chunk) for chunk in tensor.chunks]
    cuts = [
        sorted({0, extent, *(edge for box in boxes for edge in box[dim] if edge < extent)})
        for dim, extent in enumerate(tensor.shape)
    ]
    if prod(len(cut) - 1 for cut in cuts) > _MOST_CELLS:
        return
    places = [{edge: number for number, edge in enumerate(cut)} for cut in cuts]
    filled = {cell for box in boxes for cell in _cells(box, places)}
    for cell in product(*(range(len(cut) - 1) for cut in cuts)):
        if cell not in filled:
            spans = [(cut[number], cut[number + 1]) for cut, number in zip(cuts, cell, strict=True)]
            yield tuple(first for first, _ in spans), tuple(end - first for first, end in spans)


def _cells(box: Box, places: Sequence[dict[int, int]]) -> Iterator[tuple[int, ...]]:
    """The cells that a part fills; none if it reaches beyond its tensor."""
    if all(first in at and end in at for (first, end), at in zip(box, places, strict=True)):
        yield from product(*(range(at[first], at[end]) for (first, end), at in zip(box, places, strict=True)))
