"""A ``.fckpt`` becomes a ``.pt`` or ``.safetensors`` again.

If it came from such a file, its source section gives it back byte for byte.
Otherwise the state is written anew: the same values in a fresh container.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from fastckpt.conversion.export import Literals, confirm_export, export_file
from fastckpt.conversion.result import Conversion
from fastckpt.errors import OutOfSpaceError, UnsupportedStateError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.source_section import TORCH_KINDS, Segment, source_file
from fastckpt.foreign.safetensors_header import can_hold, lay_out
from fastckpt.foreign.safetensors_table import DTYPE_NAMES
from fastckpt.io.commit import Commit
from fastckpt.io.transfer import Progress
from fastckpt.layout.tree import TensorRef, decode_tree, path_text, walk_tree


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


class _SinkFile:
    """The writable file object that torch.save wants, over a `Commit`."""

    def __init__(self, sink: Commit) -> None:
        self._sink = sink
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sink.write(self.size, data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered here."""


def save_with_torch(path: str, destination: str | os.PathLike[str], *, durable: bool, threads: int) -> None:
    """``torch.save`` the state of a checkpoint, from mapped memory, with the commit protocol.

    Raises:
        DamagedError: The checkpoint is damaged; nothing is committed.
        OutOfSpaceError, CheckpointIOError: The destination is untouched.
    """
    import torch

    from fastckpt.loading.load import load

    state = load(path, mmap=True, threads=threads)
    with Commit(destination, durable=durable, reserve=None) as sink:
        file = _SinkFile(sink)
        failure: OutOfSpaceError | None = None
        try:
            torch.save(state, file)  # type: ignore[arg-type]
        except RuntimeError as error:
            # torch reports a failed write as "unexpected pos"; the cause is in the chain.
            failure = error.__context__ if isinstance(error.__context__, OutOfSpaceError) else None
            if failure is None:
                raise
        if failure is not None:
            raise failure
        sink.finish(file.size)


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
