"""The beginning of a ``.safetensors`` file for given tensors: its JSON header, and where each tensor goes.

Tensors stand in the order the safetensors library itself writes them: larger
element types first, then by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fastckpt.foreign.safetensors_table import DTYPE_NAMES
from fastckpt.io.commit import Commit
from fastckpt.io.copying import FilePlace, copy_storages
from fastckpt.io.how import How
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry

_FLAGS_WITHOUT_BYTES = 12  # conj and neg: the bytes are not the values.


class SafetensorsLayout(NamedTuple):
    """The bytes before the tensors, each tensor with its offset in the file, and the file's size."""

    header: bytes
    places: list[tuple[Entry, int]]
    size: int


def can_hold(entry: Entry) -> bool:
    """Whether the format can hold such a tensor: contiguous, in an element type it knows."""
    return entry.dtype in DTYPE_NAMES and entry.is_contiguous and not entry.flags & _FLAGS_WITHOUT_BYTES


def lay_out(entries: Iterable[Entry], metadata: Mapping[str, str]) -> SafetensorsLayout:
    """Lay out a file of tensors that the format can hold, each in its whole length."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    ordered = sorted(entries, key=lambda entry: (-entry.itemsize, entry.name))
    at = 0
    offsets = []
    for entry in ordered:
        dtype = DTYPE_NAMES[entry.dtype]
        shape = list(entry.shape)
        if dtype == "F4" and shape:
            shape[-1] *= 2  # The format counts the 4-bit floats, torch the bytes that hold two.
        header[entry.name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + entry.nbytes]}
        offsets.append(at)
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (align(len(text), 8) - len(text))
    start = 8 + len(text)
    places = [(entry, start + offset) for entry, offset in zip(ordered, offsets, strict=True)]
    return SafetensorsLayout(struct.pack("<Q", len(text)) + text, places, start + at)


def write_safetensors(
    path: str,
    entries: Sequence[Entry],
    origins: Sequence[FilePlace],
    metadata: Mapping[str, str],
    how: How,
) -> None:
    """Write tensors under their flat names.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file, if any, is untouched.
        DamagedError: A source changed meanwhile.
    """
    layout = lay_out(entries, metadata)
    with Commit(path, durable=how.durable, reserve=layout.size) as sink:
        sink.preallocate(layout.size)
        sink.write(0, layout.header)
        copy_storages(
            sink,
            [FilePlace(origins[e.storage].fd, origins[e.storage].offset + e.span[0]) for e, _ in layout.places],
            [(offset, entry.nbytes) for entry, offset in layout.places],
            how,
        )
        sink.finish(layout.size)
