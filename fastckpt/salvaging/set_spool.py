"""The tensors of a checkpoint of several files, put together in a temporary file piece by piece."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG
from fastckpt.errors import DamagedError
from fastckpt.io.source import Source
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry
from fastckpt.salvaging.gather import gathered
from fastckpt.salvaging.selection import Part
from fastckpt.surveying.wreck import Wreck

_ALIGNMENT = 64


class SetSpool:
    """A file in which whole tensors take shape; what no piece fills is zeros, and takes no room on the disk.

    Args:
        path: Where to make it.
        threads: Worker threads.
    """

    def __init__(self, path: str, *, threads: int) -> None:
        self.path = path
        self.threads = threads
        self.end = 1
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.truncate(self.fd, self.end)

    def __enter__(self) -> SetSpool:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def reserve(self, nbytes: int) -> int:
        """Room for a tensor; returns where it begins."""
        offset = align(self.end, _ALIGNMENT)
        self.end = max(offset + nbytes, self.end)
        os.truncate(self.fd, self.end)
        return offset

    def copy(
        self, source: Source, wreck: Wreck, entry: Entry, offset: int, shape: Sequence[int], start: Sequence[int]
    ) -> None:
        """Copy a tensor of a file to its place in a whole one.

        Args:
            source: The file.
            wreck: What stands of it.
            entry: The tensor.
            offset: Where the whole one begins in the spool.
            shape: Its extents.
            start: Where the tensor begins in it, in each dimension.

        Raises:
            OutOfSpaceError, CheckpointIOError: It cannot be read or written.
            DamagedError: The file changed since it was surveyed.
        """
        if not entry.nbytes:
            return
        import torch

        from fastckpt.tensor.dtypes import torch_dtype
        from fastckpt.tensor.rebuild import build_tensors

        storage = Part(wreck, wreck.storages[entry.storage])
        data = memoryview(bytearray(storage.state.nbytes))
        sources, directory = {wreck.path: source}, os.path.dirname(self.path)
        with gathered([storage], [entry], sources, directory, fill="zeros", threads=self.threads) as found:
            rest, (fd, at) = data, found.origins[0]
            while rest and (count := os.preadv(fd, [rest], at)):
                rest, at = rest[count:], at + count
            if rest:
                raise DamagedError("the file became shorter while it was salvaged", path=wreck.path)
        # A conjugated or negated view says so beside its bytes: what is copied has the values.
        alone = entry._replace(storage=0, flags=entry.flags & (ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG))
        (piece,) = build_tensors([alone], lambda _: (data, 0, len(data)), torch.device("cpu"))
        page = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        count = math.prod(shape)
        memory = mmap.mmap(self.fd, offset + count * entry.itemsize - page, offset=page)
        whole = torch.frombuffer(memory, dtype=torch_dtype(entry.dtype), count=count, offset=offset - page).view(
            tuple(shape)
        )
        whole[tuple(slice(at, at + size) for at, size in zip(start, entry.shape, strict=True))].copy_(piece)
