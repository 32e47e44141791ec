"""A ``.fckpt`` becomes a ``.pt`` or ``.safetensors`` again.

If it came from such a file, its source section gives it back byte for byte.
Otherwise the state is written anew: the same values in a fresh container.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from fastckpt.conversion.export import Literals, confirm_export, export_file, export_storages
from fastckpt.conversion.result import Conversion
from fastckpt.errors import UnsupportedStateError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.source_section import TORCH_KINDS, Segment, source_file
from fastckpt.foreign.safetensors_header import can_hold, lay_out
from fastckpt.foreign.safetensors_table import DTYPE_NAMES
from fastckpt.foreign.torch_pickle import pickle_state
from fastckpt.foreign.write_torch import write_torch
from fastckpt.io.commit import Commit
from fastckpt.io.copying import sum_written
from fastckpt.io.how import How
from fastckpt.layout.tree import TensorRef, decode_tree, path_text, walk_tree


class _Plan(NamedTuple):
    """A foreign file to be written: its length, its literals, where storages go, and its format."""

    size: int
    literals: Literals
    segments: list[Segment]
    format: str
    exact: bool


def convert_from_fckpt(
    file: CheckpointFile,
    destination: str | os.PathLike[str],
    how: How,
    *,
    to: str,
    exact: bool,
    confirm: bool,
) -> Conversion:
    """Convert one ``.fckpt`` file; ``to`` is ``pt`` or ``safetensors``.

    Args:
        file: The open checkpoint.
        destination: The file to write.
        how: How to write it.
        to: The wanted format.
        exact: Give back the original bytes if they are of this format.
        confirm: Read the written file back from disk and compare.

    Raises:
        DamagedError: A storage or the source section is damaged; nothing is committed.
        UnsupportedStateError: The format cannot hold this state.
    """
    file.checked_entries()
    kept = source_file(file) if exact else None
    if kept is not None and (kept.kind in TORCH_KINDS) == (to == "pt"):
        plan = _Plan(kept.size, list(kept.literal_ranges()), list(kept.segments), kept.kind, True)
    elif to == "safetensors":
        plan = _Plan(*plan_safetensors(file), "safetensors", False)
    else:
        segments = _write_torch(file, destination, how)
        if confirm:
            confirm_export(file, destination, literals=[], segments=segments)
        return _conversion(file, destination, "torch-zip", exact=False)
    export_file(file, destination, size=plan.size, literals=plan.literals, segments=plan.segments, how=how)
    if confirm:
        confirm_export(file, destination, literals=plan.literals, segments=plan.segments)
    return _conversion(file, destination, plan.format, exact=plan.exact)


def _conversion(file: CheckpointFile, destination: str | os.PathLike[str], kind: str, *, exact: bool) -> Conversion:
    nbytes = sum(place.nbytes for place in file.manifest.storages)
    return Conversion(
        file.path, os.fspath(destination), kind, nbytes, len(file.manifest.entries), source_verified=True, exact=exact
    )


def _write_torch(file: CheckpointFile, destination: str | os.PathLike[str], how: How) -> list[Segment]:
    """Write the state as torch.save would; returns where the storages went."""
    manifest = file.manifest
    entries = list(manifest.entries)
    sizes = [place.nbytes for place in manifest.storages]
    segments: list[Segment] = []

    def fill(sink: Commit, places: Sequence[tuple[int, int]]) -> Sequence[int]:
        segments.extend(Segment(offset, storage, size) for storage, (offset, size) in enumerate(places) if size)
        export_storages(file, sink, segments, how)
        return sum_written(sink, places, threads=how.threads)

    pickle = pickle_state(decode_tree(manifest.tree, len(entries)), entries, sizes)
    write_torch(destination, pickle, sizes, fill, durable=how.durable)
    return segments


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
