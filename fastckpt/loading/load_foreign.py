"""`fastckpt.load` for ``.pt`` and ``.safetensors`` files: read without unpickling, CRCs checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

import torch

from fastckpt import _core
from fastckpt.collector import collector_paused
from fastckpt.foreign.checks import check_crcs
from fastckpt.foreign.model import ForeignFile
from fastckpt.io.memory import allocate_regions
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, Progress, thread_count, transfer
from fastckpt.loading.opening import open_checked
from fastckpt.staging.foreign import raise_read_fault
from fastckpt.tensor.rebuild import StorageBytes, build_tensors, named, resolve_tree


def load_foreign(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device,
    mmap: bool,
    verify: bool,
    keys: str | Iterable[str] | None,
    threads: int | None,
    progress: Progress | None,
) -> Any:
    """What `fastckpt.load` does with a file of another format.

    With ``mmap``, storages that lie aligned in the file are mapped (all of
    them in a ``.pt``), the others are read.

    Raises:
        DamagedError: A CRC does not match, or a storage is missing; names the tensor.
        UnsupportedStateError: The file holds objects that are not plain values.
    """
    places: dict[int, StorageBytes] = {}
    with Source(path) as source:
        foreign, entries = open_checked(source, keys)
        sizes = [storage.nbytes for storage in foreign.storages]
        wanted = sorted({entry.storage for entry in entries})
        reading = _Reading(foreign, source, verify=verify, progress=progress)
        if mmap:
            whole = memoryview(source.map(private_writable=True))
            aligned = [n for n in wanted if foreign.storages[n].offset % _WIDEST == 0]
            places.update((n, (whole, foreign.storages[n].offset, sizes[n])) for n in aligned)
            if verify:
                base = _core.address(whole)
                proven = [n for n in aligned if foreign.storages[n].crc is not None]
                reading.move(proven, [base + foreign.storages[n].offset for n in proven], None, thread_count(threads))
        rest = [n for n in wanted if n not in places]
        regions = allocate_regions([sizes[n] for n in rest])
        places.update((n, (region, 0, sizes[n])) for n, region in zip(rest, regions, strict=True))
        filled = [(n, region) for n, region in zip(rest, regions, strict=True) if sizes[n]]
        reading.move(
            [n for n, _ in filled],
            [foreign.storages[n].offset for n, _ in filled],
            [_core.address(region) for _, region in filled],
            reading_threads(source, threads),
        )
        source.require_unchanged(next_step="load it again")
    if verify:
        check_crcs(foreign, reading.crcs)
    with collector_paused():
        tensors = build_tensors(entries, places.__getitem__, torch.device(device))
        return resolve_tree(foreign.tree, lambda ref: tensors[ref.entry]) if keys is None else named(entries, tensors)


_WIDEST: Final = 16
"""Bytes of the widest element (complex128): what a mapped storage must be aligned to."""


class _Reading:
    """The moves of one load, and the CRC-32 of every storage that was moved."""

    def __init__(self, foreign: ForeignFile, source: Source, *, verify: bool, progress: Progress | None) -> None:
        self.foreign = foreign
        self.source = source
        self.verify = verify
        self.progress = progress
        self.crcs = [storage.crc or 0 for storage in foreign.storages]

    def move(self, storages: list[int], origins: list[int], sinks: list[int] | None, threads: int) -> None:
        """Read storages into memory, or, without ``sinks``, only check them where they are mapped."""
        sizes = [self.foreign.storages[n].nbytes for n in storages]
        moved = transfer(
            map(Move, origins, sinks or [0] * len(origins), sizes),
            source=self.source.fd if sinks is not None else MEMORY,
            source_direct=self.source.direct_fd if sinks is not None else -1,
            sink=MEMORY if sinks is not None else NOWHERE,
            threads=threads,
            leaves=False,
            crcs=self.verify,
            mapped=sinks is None,
            progress=self.progress,
        )
        if moved.faults:
            fault = moved.faults[0]
            offset = self.foreign.storages[storages[fault.move]].offset + fault.offset
            raise_read_fault(self.source, offset, fault.errno)
        for storage, crc in zip(storages, moved.crcs, strict=False):
            self.crcs[storage] = crc
