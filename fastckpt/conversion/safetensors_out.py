"""A ``.safetensors`` file laid out for the tensors of a checkpoint."""

from __future__ import annotations

import json

from fastckpt.errors import UnsupportedStateError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.source_section import Segment
from fastckpt.foreign.safetensors_file import DTYPE_NAMES
from fastckpt.foreign.safetensors_header import can_hold, lay_out
from fastckpt.layout.tree import TensorRef, decode_tree, path_text, walk_tree


def plan_safetensors(file: CheckpointFile) -> tuple[int, list[tuple[int, bytes]], list[Segment]]:
    """``(size, literals, segments)`` of the file; segments are whole storages.

    Raises:
        UnsupportedStateError: The state holds what the format cannot: values
            that are not tensors, views, shared storages, or other dtypes.
    """
    manifest = file.manifest
    entries = list(manifest.entries)
    for path, leaf in walk_tree(decode_tree(manifest.tree, len(entries))):
        if type(leaf) is not TensorRef:
            raise _cannot(file, f"{path_text(path)} is not a tensor")
    seen: dict[int, str] = {}
    for entry in entries:
        if entry.dtype not in DTYPE_NAMES:
            raise _cannot(file, f"{entry.name} has elements of type {entry.dtype}")
        if not can_hold(entry) or entry.nbytes != manifest.storages[entry.storage].nbytes:
            raise _cannot(file, f"{entry.name} is a view of a larger storage or strided")
        if entry.storage in seen and entry.nbytes:
            raise _cannot(file, f"{entry.name} shares its bytes with {seen[entry.storage]}")
        seen[entry.storage] = entry.name
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in manifest.metadata.items()
    }
    layout = lay_out(entries, texts)
    segments = [Segment(offset, entry.storage, entry.nbytes) for entry, offset in layout.places if entry.nbytes]
    return layout.size, [(0, layout.header)], segments


def _cannot(file: CheckpointFile, reason: str) -> UnsupportedStateError:
    return UnsupportedStateError(
        f"a .safetensors file cannot hold this state: {reason}", path=file.path, next_step="convert it to .pt instead"
    )
