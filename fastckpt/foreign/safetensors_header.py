"""The beginning of a ``.safetensors`` file for given tensors: its JSON header, and where each tensor goes.

Tensors stand in the order the safetensors library itself writes them: larger
element types first, then by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import NamedTuple

from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.safetensors_table import DTYPE_NAMES
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry


class SafetensorsLayout(NamedTuple):
    """The bytes before the tensors, the name of each tensor with its offset in the file, and the file's size."""

    header: bytes
    places: list[tuple[str, int]]
    size: int


def lay_out(tensors: Mapping[str, Entry], texts: Mapping[str, str]) -> SafetensorsLayout:
    """Lay out a file of tensors, each contiguous and in its whole length.

    Raises:
        UnsupportedStateError: A name or text is no JSON.
    """
    header: dict[str, object] = {"__metadata__": dict(texts)} if texts else {}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    at = 0
    offsets = []
    for name, entry in ordered:
        dtype = DTYPE_NAMES[entry.dtype]
        shape = list(entry.shape)
        if dtype == "F4" and shape:
            shape[-1] *= 2  # The format counts the 4-bit floats, torch the bytes that hold two.
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + entry.nbytes]}
        offsets.append(at)
        at += entry.nbytes
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except ValueError as error:  # Half a character in a name.
        raise UnsupportedStateError(f"its names are no JSON ({error})") from None
    text += b" " * (align(len(text), 8) - len(text))
    start = 8 + len(text)
    places = [(name, start + offset) for (name, _), offset in zip(ordered, offsets, strict=True)]
    return SafetensorsLayout(struct.pack("<Q", len(text)) + text, places, start + at)
