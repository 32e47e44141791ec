"""``set.fckpt``: what the shards of a set hold, and which shards these are.

It is an ordinary ``.fckpt`` without tensors. Its state says of every shard the
root digest and the size, and of every tensor which part of it is in which
shard. It is committed after all shards: a set whose manifest is there is whole,
and a shard that is not the one it names is told by its root.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fastckpt.constants import SET_SHARD, SET_VERSION, SET_VERSION_KEY
from fastckpt.errors import DamagedError
from fastckpt.layout.tree import DTypeRef, SizeRef
from fastckpt.remote.path import Place
from fastckpt.sets.dcp_metadata import MAX_DIMS, MAX_EXTENT, GlobalTensor
from fastckpt.stored.open_file import open_file

SHARD: Final = re.compile(SET_SHARD)


class Shard(NamedTuple):
    """A file of the set."""

    root: str
    size: int


@dataclass(slots=True)
class SetTensor(GlobalTensor):
    """A tensor as a whole; ``shards`` has the name of the shard of each of its ``chunks``."""

    shards: list[str] = field(default_factory=list)


@dataclass(slots=True)
class SetManifest:
    """What ``set.fckpt`` says.

    Attributes:
        shards: Each shard by its name.
        tensors: Each tensor by its flat name.
        objects: The shard of everything that is no tensor, by its flat name.
        paths: The keys on the way to each name, where they were kept.
        order: All names of tensors and objects, in the order of the state.
        root: The root digest of the file: that of all shards, too.
    """

    shards: dict[str, Shard]
    tensors: dict[str, SetTensor]
    objects: dict[str, str]
    paths: dict[str, tuple[Any, ...]]
    order: list[str]
    root: str | None


def shard_name(generation: int, rank: int) -> str:
    """What the shard of a rank is called."""
    return f"shard-{generation:04d}-{rank:05d}.fckpt"


def key_of(name: str, offsets: Sequence[int], sizes: Sequence[int], shape: Sequence[int]) -> str:
    """What a part of a tensor is called in its shard: ``name`` for all of it, else ``name[128:192,0:64]``."""
    if tuple(sizes) == tuple(shape):
        return name
    return f"{name}[{','.join(f'{at}:{at + size}' for at, size in zip(offsets, sizes, strict=True))}]"


def read_set_manifest(place: Place) -> SetManifest:
    """What the ``set.fckpt`` at ``place`` says.

    Raises:
        DamagedError: It is damaged, or says what it cannot mean.
        UnsupportedVersionError, NotACheckpointError, CheckpointIOError
    """
    with open_file(place) as file:
        tree, root = file.tree, file.root
    try:
        return _decode(tree, root)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        raise DamagedError("this is not the manifest of a set", path=place) from None


def _decode(tree: Any, root: str | None) -> SetManifest:
    if tree[SET_VERSION_KEY] != SET_VERSION:
        raise ValueError("a version that is not known")
    shards = {
        _shard_name(name): Shard(_text(each["root"]), _count(each["size"])) for name, each in tree["shards"].items()
    }
    names = list(shards)
    tensors: dict[str, SetTensor] = {}
    objects: dict[str, str] = {}
    for name, each in tree["entries"].items():
        if "object" in each:
            objects[_text(name)] = names[_count(each["object"])]
            continue
        dtype, shape = each["dtype"], each["shape"]
        if not isinstance(dtype, DTypeRef) or not isinstance(shape, SizeRef):
            raise TypeError("no dtype or shape")
        tensor = SetTensor(dtype.name, shape.shape, requires_grad=each["requires_grad"] is True)
        for offsets, sizes, shard in each["parts"]:
            tensor.chunks.append((_counts(offsets), _counts(sizes)))
            tensor.shards.append(names[_count(shard)])
        tensors[_text(name)] = tensor
    paths = {name: path for name, path in (tree["planner"] or {}).items() if isinstance(path, tuple)}
    return SetManifest(shards, tensors, objects, paths, list(tree["entries"]), root)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _shard_name(value: object) -> str:
    if not isinstance(value, str) or SHARD.fullmatch(value) is None:
        raise ValueError("no name of a shard")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < MAX_EXTENT:
        raise TypeError("no number")
    return value


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_DIMS:
        raise TypeError("no numbers")
    return tuple(_count(value) for value in values)
