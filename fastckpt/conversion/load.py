"""`fastckpt.load` for ``.pt`` and ``.safetensors`` files: read without unpickling, CRCs checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from fastckpt import _core
from fastckpt.conversion.to_fckpt import check_crcs, refuse_unsupported
from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.foreign import open_foreign
from fastckpt.io.memory import allocate_regions
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, Move, Progress, transfer
from fastckpt.layout.entries import check_entry
from fastckpt.reader import select
from fastckpt.tensor.rebuild import build_tensors, named, resolve_tree


def load_foreign(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device,
    verify: bool,
    keys: str | Iterable[str] | None,
    threads: int | None,
    progress: Progress | None,
) -> Any:
    """What `fastckpt.load` does with a file of another format; always into fresh memory.

    Raises:
        DamagedError: A CRC does not match, or a storage is missing; names the tensor.
        UnsupportedStateError: The file holds objects that are not plain values.
    """
    foreign = open_foreign(path)
    if keys is None:
        refuse_unsupported(foreign)
    sizes = [storage.nbytes for storage in foreign.storages]
    for entry in foreign.entries:
        check_entry(entry, sizes)
    entries = foreign.entries if keys is None else select(foreign.entries, keys, foreign.path)
    wanted = sorted({entry.storage for entry in entries})
    regions = dict(zip(wanted, allocate_regions([sizes[number] for number in wanted]), strict=True))
    filled = [number for number in wanted if sizes[number]]
    with Source(path) as source:
        moved = transfer(
            (Move(foreign.storages[n].offset, _core.address(regions[n]), sizes[n]) for n in filled),
            source=source.fd,
            source_direct=source.direct_fd,
            sink=MEMORY,
            threads=reading_threads(source, threads),
            leaves=False,
            crcs=verify,
            progress=progress,
        )
        if moved.faults:
            fault = moved.faults[0]
            offset = foreign.storages[filled[fault.move]].offset + fault.offset
            if fault.errno:
                raise CheckpointIOError(
                    f"cannot read: {os.strerror(fault.errno)}", errno=fault.errno, path=foreign.path, offset=offset
                )
            raise DamagedError("the file became shorter while it was read", path=foreign.path, offset=offset)
        if not source.unchanged():
            raise DamagedError("the file changed while it was read", path=foreign.path, next_step="load it again")
    if verify:
        crcs = [storage.crc or 0 for storage in foreign.storages]
        for number, crc in zip(filled, moved.crcs, strict=True):
            crcs[number] = crc
        check_crcs(foreign, crcs)
    tensors = build_tensors(entries, lambda n: (regions[n], 0, sizes[n]), torch.device(device))
    return resolve_tree(foreign.tree, lambda ref: tensors[ref.entry]) if keys is None else named(entries, tensors)
