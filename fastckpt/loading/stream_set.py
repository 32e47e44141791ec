"""`fastckpt.stream` of a checkpoint of several files: some tensors at a time, each proven first."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import torch

from fastckpt.layout.entries import by_storage
from fastckpt.layout.selection import select
from fastckpt.remote.path import Place
from fastckpt.sets.one_checkpoint import one_checkpoint
from fastckpt.sets.opened_set import OpenedSet
from fastckpt.tensor.dtypes import require_dtypes
from fastckpt.tensor.rebuild import build_tensors


def stream_set(
    directory: Place, device: torch.device, keys: str | Iterable[str] | None, *, threads: int | None
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The tensors of the checkpoint in a directory, in its order. Raises, and yields, what `fastckpt.stream` does."""
    with OpenedSet(one_checkpoint(directory)) as whole:
        entries = whole.entries if keys is None else select(whole.entries, keys, whole.path)
        require_dtypes(entries, whole.path)
        on_storage = by_storage(entries)
        for batch in whole.batches(on_storage):
            bytes_of = whole.bring(batch, threads=threads, verify=True, progress=None, mapped=False)
            group = [entry for number in batch for entry in on_storage[number]]
            tensors = list(zip(group, build_tensors(group, bytes_of, device), strict=True))
            del bytes_of  # From here on the consumer alone keeps tensors alive.
            while tensors:
                entry, tensor = tensors.pop(0)
                yield entry.name, tensor
                del tensor
