"""Writing a ``.safetensors``: a JSON header, then the tensors, as the safetensors library orders them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

from fastckpt.foreign.safetensors_file import DTYPE_NAMES
from fastckpt.io.commit import Commit
from fastckpt.io.transfer import Progress
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry
from fastckpt.salvaging.copying import copy_storages
from fastckpt.salvaging.gather import Origin


def can_hold(entry: Entry) -> bool:
    """Whether the format can hold such a tensor: contiguous, in an element type it knows."""
    return entry.dtype in DTYPE_NAMES and entry.is_contiguous and not entry.flags & 12


def write_safetensors(
    path: str,
    entries: Sequence[Entry],
    origins: Sequence[Origin],
    metadata: Mapping[str, str],
    *,
    durable: bool,
    threads: int,
    progress: Progress | None,
) -> None:
    """Write tensors under their flat names.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file, if any, is untouched.
        DamagedError: A source changed meanwhile.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.itemsize, entry.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    offsets = []
    for entry in ordered:
        shape = list(entry.shape)
        if DTYPE_NAMES[entry.dtype] == "F4" and shape:
            shape[-1] *= 2
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": shape,
            "data_offsets": [at, at + entry.nbytes],
        }
        offsets.append(at)
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (align(len(text), 8) - len(text))
    start = 8 + len(text)
    with Commit(path, durable=durable, reserve=start + at) as sink:
        sink.preallocate(start + at)
        sink.write(0, struct.pack("<Q", len(text)) + text)
        copy_storages(
            sink,
            [Origin(origins[e.storage].fd, origins[e.storage].offset + e.span[0]) for e in ordered],
            [(start + offset, entry.nbytes) for entry, offset in zip(ordered, offsets, strict=True)],
            threads=threads,
            progress=progress,
        )
        sink.finish(start + at)
