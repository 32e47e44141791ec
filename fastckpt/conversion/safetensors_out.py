"""A ``.safetensors`` file laid out for the tensors of a checkpoint.

Tensors stand in the order the safetensors library itself writes them: larger
element types first, then by name.
"""

from __future__ import annotations

import json
import struct

from fastckpt.checkpoint_file import CheckpointFile
from fastckpt.conversion.source_section import Segment
from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.safetensors_file import DTYPE_NAMES
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry
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
        whole = entry.is_contiguous and entry.nbytes == manifest.storages[entry.storage].nbytes
        if not whole or entry.flags & 12:
            raise _cannot(file, f"{entry.name} is a view of a larger storage or strided")
        if entry.storage in seen and entry.nbytes:
            raise _cannot(file, f"{entry.name} shares its bytes with {seen[entry.storage]}")
        seen[entry.storage] = entry.name
    return _layout(entries, manifest.metadata)


def _cannot(file: CheckpointFile, reason: str) -> UnsupportedStateError:
    return UnsupportedStateError(
        f"a .safetensors file cannot hold this state: {reason}", path=file.path, next_step="convert it to .pt instead"
    )


def _layout(entries: list[Entry], metadata: dict[str, object]) -> tuple[int, list[tuple[int, bytes]], list[Segment]]:
    header: dict[str, object] = {}
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in metadata.items()
    }
    if texts:
        header["__metadata__"] = texts
    offsets = []
    at = 0
    ordered = sorted(entries, key=lambda entry: (-entry.itemsize, entry.name))
    for entry in ordered:
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        offsets.append(at)
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (align(len(text), 8) - len(text))
    start = 8 + len(text)
    segments = [
        Segment(start + offset, entry.storage, entry.nbytes)
        for entry, offset in zip(ordered, offsets, strict=True)
        if entry.nbytes
    ]
    return start + at, [(0, struct.pack("<Q", len(text)) + text)], segments
