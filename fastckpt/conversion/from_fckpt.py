"""A ``.fckpt`` becomes a ``.pt`` or ``.safetensors`` again.

If it came from such a file, its source section gives it back byte for byte.
Otherwise the state is written anew: the same values in a fresh container.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from fastckpt.conversion.export import Literals, confirm_export, export_file
from fastckpt.conversion.result import Conversion
from fastckpt.conversion.safetensors_out import plan_safetensors
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.source_section import TORCH_KINDS, Segment, source_file
from fastckpt.io.transfer import Progress


class _Plan(NamedTuple):
    """A foreign file to be written: its length, its literals, where storages go, and its format."""

    size: int
    literals: Literals
    segments: list[Segment]
    format: str
    exact: bool


def convert_from_fckpt(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str,
    exact: bool,
    durable: bool,
    threads: int,
    confirm: bool,
    progress: Progress | None = None,
) -> Conversion:
    """Convert one ``.fckpt`` file; ``to`` is ``pt`` or ``safetensors``.

    Args:
        path: The checkpoint.
        destination: The file to write.
        to: The wanted format.
        exact: Give back the original bytes if they are of this format.
        durable: Return only when the file survives a power cut.
        threads: Worker threads.
        confirm: Read the written file back from disk and compare.
        progress: Told of the bytes done so far.

    Raises:
        DamagedError: A storage or the source section is damaged; nothing is committed.
        UnsupportedStateError: The format cannot hold this state.
    """
    with CheckpointFile(path) as file:
        file.checked_entries()
        kept = source_file(file) if exact else None
        if kept is not None and (kept.kind in TORCH_KINDS) == (to == "pt"):
            plan = _Plan(kept.size, list(kept.literal_ranges()), list(kept.segments), kept.kind, True)
        elif to == "safetensors":
            plan = _Plan(*plan_safetensors(file), "safetensors", False)
        else:
            from fastckpt.conversion.torch_out import save_with_torch

            save_with_torch(file.path, destination, durable=durable, threads=threads)
            return _conversion(file, destination, "torch-zip", exact=False)
        export_file(
            file,
            destination,
            size=plan.size,
            literals=plan.literals,
            segments=plan.segments,
            durable=durable,
            threads=threads,
            progress=progress,
        )
        if confirm:
            confirm_export(file, destination, literals=plan.literals, segments=plan.segments)
        return _conversion(file, destination, plan.format, exact=plan.exact)


def _conversion(file: CheckpointFile, destination: str | os.PathLike[str], kind: str, *, exact: bool) -> Conversion:
    nbytes = sum(place.nbytes for place in file.manifest.storages)
    return Conversion(
        file.path, os.fspath(destination), kind, nbytes, len(file.manifest.entries), source_verified=True, exact=exact
    )
