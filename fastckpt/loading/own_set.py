"""A set of ``.fckpt`` shards put together: each part of a tensor in its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fastckpt.errors import DamagedError
from fastckpt.io.source import Source
from fastckpt.layout.selection import select_names
from fastckpt.loading.nesting import nested
from fastckpt.sets.model import CheckpointSet, Member
from fastckpt.sets.require_sound import require_manifest, require_there
from fastckpt.sets.set_manifest import NAME, OBJECTS, TENSORS, key_of, read_set_manifest
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened
from fastckpt.tensor.dtypes import torch_dtype


def load_own_set(
    checkpoint: CheckpointSet, keys: str | Iterable[str] | None, load_file: Callable[..., Any], device: torch.device
) -> Any:
    """The nested state, or a flat dict of the tensors that ``keys`` name, put together from the parts in all shards."""
    require_manifest(checkpoint)
    manifest = read_set_manifest(os.path.join(checkpoint.path, NAME))
    names = list(manifest.tensors) if keys is None else select_names(list(manifest.tensors), keys, checkpoint.path)
    values: dict[str, Any] = {}
    parts: dict[str, list[tuple[str, str, tuple[slice, ...]]]] = {}
    for name in names:
        tensor = manifest.tensors[name]
        for (offsets, sizes), shard in zip(tensor.chunks, tensor.shards, strict=True):
            place = tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
            parts.setdefault(shard, []).append((name, key_of(name, offsets, sizes, tensor.shape), place))
    if keys is None:
        for shard in manifest.objects.values():
            parts.setdefault(shard, [])
    for member in checkpoint.members:
        shard = member.name
        if shard not in parts:
            continue
        require_there(checkpoint, [member])
        wanted = None if keys is None else [f"{TENSORS}.{key}" for _, key, _ in parts[shard]]
        with Source(member.path) as source:
            require_root(open_file(source), member)
            loaded = load_file(source, keys=wanted)
        tensors = loaded[TENSORS] if keys is None else {key.partition(".")[2]: each for key, each in loaded.items()}
        for name, key, place in parts[shard]:
            tensor = manifest.tensors[name]
            if key == name:
                values[name] = tensors[key]
                continue
            if name not in values:
                values[name] = torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device=device)
            values[name][place].copy_(tensors[key])
        if keys is None:
            values |= {
                name: object_in(loaded, name, member.path)
                for name, own_shard in manifest.objects.items()
                if own_shard == shard
            }
    order = [*manifest.tensors, *manifest.objects]
    ordered = {name: values[name] for name in order if name in values}
    return nested(manifest.paths, ordered) if keys is None else ordered


def object_in(state: Any, name: str, path: str) -> Any:
    """What the state of a shard has of a name that is no tensor's. Raises DamagedError if it has nothing."""
    try:
        return state[OBJECTS][name]
    except (KeyError, TypeError):
        raise DamagedError(f"the manifest puts {name} into this file, and it is not there", path=path) from None


def require_root(shard: Opened, member: Member) -> None:
    """Raise DamagedError unless this is the shard that the manifest names."""
    if shard.root != member.root:
        raise DamagedError("this shard is of another save than the set that names it", path=shard.path)
