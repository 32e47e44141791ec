"""A set of ``.fckpt`` shards put together: each part of a tensor in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from fastckpt.constants import SET_TENSORS
from fastckpt.errors import DamagedError
from fastckpt.io.open_source import open_source
from fastckpt.layout.selection import select_names
from fastckpt.sets.contents import about_shard, object_in, require_root
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.nesting import nested
from fastckpt.sets.require_sound import require_manifest
from fastckpt.sets.set_manifest import SetManifest, key_of
from fastckpt.stored.open_file import open_file
from fastckpt.tensor.dtypes import torch_dtype


class _Part(NamedTuple):
    """A part of a tensor: whose, what it is called in its shard, its dtype, where it begins, and its extents."""

    name: str
    key: str
    dtype: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def load_own_set(
    checkpoint: CheckpointSet, keys: str | Iterable[str] | None, load_file: Callable[..., Any], device: torch.device
) -> Any:
    """The nested state, or a flat dict of the tensors that ``keys`` name, put together from the parts in all shards."""
    require_manifest(checkpoint)
    manifest = checkpoint.manifest
    assert isinstance(manifest, SetManifest), "it is sound"
    names = list(manifest.tensors) if keys is None else select_names(list(manifest.tensors), keys, checkpoint.path)
    values: dict[str, Any] = {}
    parts: dict[str, list[_Part]] = {}
    for name in names:
        tensor = manifest.tensors[name]
        for (offsets, sizes), shard in zip(tensor.chunks, tensor.shards, strict=True):
            parts.setdefault(shard, []).append(
                _Part(name, key_of(name, offsets, sizes, tensor.shape), tensor.dtype, offsets, sizes)
            )
    if keys is None:
        for shard in manifest.objects.values():
            parts.setdefault(shard, [])
    for member in checkpoint.members:
        shard = member.name
        if shard not in parts:
            continue
        wanted = None if keys is None else [f"{SET_TENSORS}.{part.key}" for part in parts[shard]]
        objects = [name for name, own_shard in manifest.objects.items() if own_shard == shard and keys is None]
        keys_here = [*(part.key for part in parts[shard]), *objects]
        with about_shard(member.path, keys_here), open_source(member.place) as source:
            require_root(open_file(source), member)
            loaded = load_file(source, keys=wanted)
        for part in parts[shard]:
            found = _taken(loaded, part, member.path, by_name=keys is not None)
            if part.key == part.name:
                values[part.name] = found
                continue
            if part.name not in values:
                values[part.name] = torch.empty(manifest.tensors[part.name].shape, dtype=found.dtype, device=device)
            place = tuple(slice(at, at + size) for at, size in zip(part.offsets, part.sizes, strict=True))
            values[part.name][place].copy_(found)
        values |= {name: object_in(loaded, name, member.path) for name in objects}
    ordered = {name: values[name] for name in manifest.order if name in values}
    return nested(manifest.paths, ordered) if keys is None else ordered


def _taken(loaded: Any, part: _Part, path: str, *, by_name: bool) -> torch.Tensor:
    """A part out of what was loaded of its shard. Raises DamagedError unless it is what the manifest says."""
    try:
        found = loaded[f"{SET_TENSORS}.{part.key}"] if by_name else loaded[SET_TENSORS][part.key]
    except (KeyError, TypeError):
        found = None
    is_tensor = isinstance(found, torch.Tensor)
    if is_tensor and tuple(found.shape) == part.sizes and found.dtype == torch_dtype(part.dtype):
        tensor: torch.Tensor = found
        return tensor
    raise DamagedError(
        "the shard does not hold this part as the set says",
        path=path,
        tensor=f"{SET_TENSORS}.{part.key}",
        expected=f"{part.dtype}{list(part.sizes)}",
        actual=f"{found.dtype}{list(found.shape)}" if is_tensor else "nothing",
    )
