"""`fastckpt.save`: a state in memory becomes a checkpoint file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastckpt.collector import collector_paused
from fastckpt.errors import UnsupportedStateError
from fastckpt.io.transfer import Progress, direct_threads, thread_count
from fastckpt.layout.tree import Path, encode_tree, path_text
from fastckpt.tensor.flatten import flatten, host_bytes
from fastckpt.writer import Content, write_checkpoint


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
    """
    with collector_paused():
        flat = flatten(state)
    storages = [host_bytes(storage) for storage in flat.storages]
    content = Content(
        tree=flat.tree,
        metadata_tree=encode_tree(dict(metadata or {}), _refuse_metadata),
        entries=flat.entries,
        storage_sizes=[storage.nbytes() for storage in storages],
        origins=[storage.data_ptr() for storage in storages],
    )
    count = direct_threads(threads) if durable and codec == "none" else thread_count(threads)
    write_checkpoint(content, path, codec=codec, durable=durable, threads=count, progress=progress)


def _refuse_metadata(value: Any, path: Path) -> object:
    kind = type(value)
    raise UnsupportedStateError(
        f"metadata: {path_text(path)}: cannot store an object of type {kind.__module__}.{kind.__qualname__}",
        next_step="metadata takes plain values; put tensors into the state",
    )
