"""`fastckpt.save`: a state in memory, or on a device, becomes a checkpoint file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastckpt.collector import collector_paused
from fastckpt.errors import UnsupportedStateError
from fastckpt.fckpt.content import Content, Supply
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.io.transfer import Progress, direct_threads, thread_count
from fastckpt.layout.tree import Path, encode_tree, path_text
from fastckpt.saving.background import wait_for
from fastckpt.tensor.flatten import FlatState, flatten, on_device


def save(
    state: object,
    path: str | os.PathLike[str],
    *,
    codec: str = "none",
    metadata: Mapping[str, Any] | None = None,
    durable: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Save ``state`` to ``path``: the whole new file, or the old one as it was.

    Tensors on a device go through a few slots of pinned memory; the state is
    never copied to host memory as a whole. Their leaf digests are computed on
    the device where its engine is live (see `fastckpt.kernels.dispatch`). The
    file is the same, byte for byte, wherever the tensors were. A save of the
    same path that still goes on in the background is waited for.

    A tensor that another thread changes meanwhile is saved torn: some bytes
    from before, some from after. The file is whole all the same, and loads.
    `save_async` takes a snapshot before it returns.

    Args:
        state: Any nesting of dict (str and int keys), OrderedDict, list, tuple,
            tensors, int, float, complex, bool, None, str, bytes, torch.dtype,
            torch.Size and torch.device. Tensors that share a storage, views and
            strides come back as they were.
        path: The file; a symbolic link is followed. An existing file is
            replaced in one step at the very end.
        codec: ``"none"`` (mappable), ``"zstd"`` or ``"zstd:LEVEL"`` with LEVEL 1 to 22.
        metadata: Plain values to keep beside the state, without tensors.
        durable: Return only when the file would survive a power cut.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes done so far.

    Raises:
        UnsupportedStateError: The state holds something that cannot be stored;
            nothing was written.
        UsageError: Unknown codec or bad thread count.
        OutOfSpaceError, CheckpointIOError: The old file is untouched.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C; the old file is untouched.

    Example:
        >>> fastckpt.save({"w": torch.ones(2, 3), "step": 500}, "step_500.fckpt")
    """
    with collector_paused():
        flat = flatten(state)
    supply, origins = _sources(flat.storages)
    content = content_of(flat, metadata, origins, supply)
    wait_for(path)
    write_content(content, path, codec=codec, durable=durable, threads=threads, progress=progress)


def _sources(storages: Sequence[torch.UntypedStorage]) -> tuple[Supply | None, list[int]]:
    """What brings the bytes that lie on devices, and where the others begin in host memory."""
    if not any(map(on_device, storages)):
        return None, [storage.data_ptr() for storage in storages]
    from fastckpt.staging.fetching import DeviceSupply, bytes_of

    origins = [0 if on_device(storage) else storage.data_ptr() for storage in storages]
    return DeviceSupply([bytes_of(storage) for storage in storages]), origins


def content_of(
    flat: FlatState, metadata: Mapping[str, Any] | None, origins: Sequence[int], supply: Supply | None
) -> Content:
    """What the writer shall write of a state taken apart. Raises UnsupportedStateError for the metadata."""
    return Content(
        tree=flat.tree,
        metadata_tree=encode_tree(dict(metadata or {}), _refuse_metadata),
        entries=flat.entries,
        storage_sizes=[storage.nbytes() for storage in flat.storages],
        origins=origins,
        supply=supply,
    )


def write_content(
    content: Content,
    path: str | os.PathLike[str],
    *,
    codec: str,
    durable: bool,
    threads: int | None,
    progress: Progress | None,
) -> None:
    """`writer.write_checkpoint` with as many threads as the medium wants."""
    count = direct_threads(threads) if durable and codec == "none" else thread_count(threads)
    write_checkpoint(content, path, codec=codec, durable=durable, threads=count, progress=progress)


def _refuse_metadata(value: Any, path: Path) -> object:
    kind = type(value)
    raise UnsupportedStateError(
        f"metadata: {path_text(path)}: cannot store an object of type {kind.__module__}.{kind.__qualname__}",
        next_step="metadata takes plain values; put tensors into the state",
    )
