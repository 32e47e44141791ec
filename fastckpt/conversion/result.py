"""What a conversion says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from fastckpt.foreign.suffixes import Format as Format


@dataclass(frozen=True, slots=True)
class Conversion:
    """One converted file.

    Attributes:
        source: What was read.
        destination: What was written.
        format: The destination's format: ``fckpt``, ``torch-zip``, ``torch-legacy``, ``safetensors``,
            or ``meta`` for a file beside checkpoints, such as ``meta_*.json``, which is copied as it is.
        nbytes: Bytes of tensor data.
        tensors: How many tensors.
        source_verified: Whether every tensor byte of the source was proven by a checksum of its own; says nothing
            where ``nbytes`` is 0.
        exact: Whether converting back gives the source byte for byte (or, back to a foreign
            format, whether the bytes are those of the original file).
        left_out: What the destination's format cannot hold, and is not in it.
        notes: What the user should know: a file that was there already, a rank that is missing.
    """

    source: str
    destination: str
    format: str
    nbytes: int
    tensors: int
    source_verified: bool
    exact: bool
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
