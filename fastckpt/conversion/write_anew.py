"""The state of an open checkpoint written anew, as a ``.fckpt`` or ``.pt``: in a container of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastckpt import _core
from fastckpt.conversion.arrays import array_reader
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.pickle_named import storages_beside
from fastckpt.foreign.torch_pickle import pickle_state
from fastckpt.foreign.write_torch import write_torch
from fastckpt.io.commit import Commit
from fastckpt.io.how import How
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.transfer import MEMORY, Move, transfer
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import encode_tree
from fastckpt.stored.opened import Opened
from fastckpt.stored.supply import OpenedSupply


def write_fckpt(
    file: Opened,
    tree: Any,
    entries: Sequence[Entry],
    metadata: Mapping[str, Any],
    destination: str | os.PathLike[str],
    how: How,
    *,
    codec: str,
) -> None:
    """Write the state of an open checkpoint as a ``.fckpt``; no tensor of it is in memory as a whole.

    Args:
        file: The checkpoint.
        tree: Its nesting, perhaps with other keys.
        entries: Its tensors, by their names in that.
        metadata: What to keep beside the state.
        destination: The file to write.
        how: Threads, durability, progress.
        codec: See `fastckpt.save`.

    Raises:
        DamagedError: A tensor is damaged; nothing is committed.
        UnsupportedStateError, OutOfSpaceError, CheckpointIOError
    """
    content = Content(
        tree=encode_tree(tree),
        metadata_tree=encode_tree(dict(metadata)),
        entries=entries,
        storage_sizes=list(file.storage_sizes),
        origins=[0] * len(file.storage_sizes),
        supply=OpenedSupply(file, threads=how.threads),
    )
    write_checkpoint(content, destination, codec=codec, durable=how.durable, threads=how.threads, progress=how.progress)


def write_pt(file: Opened, tree: Any, entries: Sequence[Entry], destination: str | os.PathLike[str], how: How) -> None:
    """Write the state of an open checkpoint as torch.save would; memory is bounded by a batch of storages.

    Raises: As `write_fckpt`.
    """
    sizes = list(file.storage_sizes)
    stored = storages_beside(tree, entries, len(sizes))
    write_torch(
        destination,
        pickle_state(tree, entries, sizes, read_array=array_reader(file, entries)),
        [sizes[storage] for storage in stored],
        lambda sink, places: _fill(file, sink, dict(zip(stored, places, strict=True)), how),
        durable=how.durable,
        keys=[str(storage) for storage in stored],
    )


def _fill(file: Opened, sink: Commit, places: Mapping[int, tuple[int, int]], how: How) -> list[int]:
    """Write storages to their places, each proven before, and return the CRC-32 of each; in bounded memory."""
    crcs = dict.fromkeys(places, 0)
    done = 0
    for batch in file.batches(places):
        bytes_of = file.bring(batch, threads=how.threads, verify=True, progress=None, mapped=False)
        full = [storage for storage in batch if places[storage][1]]
        moves = []
        for storage in full:
            region, start, size = bytes_of(storage)
            moves.append(Move(_core.address(region) + start, places[storage][0], size))
        with typed_os_errors(sink.path, doing="write the file"):
            moved = transfer(moves, source=MEMORY, sink=sink.fd, threads=how.threads, leaves=False, crcs=True)
        crcs.update(zip(full, moved.crcs, strict=True))
        done += sum(places[storage][1] for storage in full)
        if how.progress is not None:
            how.progress(done)
    file.require_unchanged(next_step="convert it again")
    return list(crcs.values())
