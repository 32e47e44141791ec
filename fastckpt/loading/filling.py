"""The bytes of a file on their way into tensors that exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch

from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.layout.prefixes import Named
from fastckpt.loading.opening import Wanted
from fastckpt.staging.existing import ExistingTensors, copy_pairs, direct_places, without_repeats
from fastckpt.staging.stage import Staging, bring
from fastckpt.stored.opened import Opened
from fastckpt.tensor.rebuild import build_tensors


class Filler(ABC):
    """What `load_into` fills a destination from.

    Attributes:
        path: The file, or the directory.
        named: The tensors and the tree. Their storages tell them apart whatever they are called in the destination.
        storage_sizes: Bytes of each storage.
    """

    path: str
    named: Named
    storage_sizes: Sequence[int]

    @abstractmethod
    def require(self, entries: Sequence[Entry]) -> None:
        """Raise DamagedError for what shows before a byte is written that these cannot be read."""

    @abstractmethod
    def fill(
        self, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor], stagings: Mapping[torch.device, Staging]
    ) -> None:
        """Bring the bytes of the entries, verified, into the tensors of their names, with the staging of their device.

        Raises:
            DamagedError: They are not what was written.
            CheckpointIOError: They cannot be read.
        """


class FileFiller(Filler):
    """A file; see `Filler`."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.path = wanted.file.path
        self.named = Named(wanted.entries, lambda: wanted.file.tree)
        self.storage_sizes = wanted.file.storage_sizes

    def require(self, entries: Sequence[Entry]) -> None:
        """See `Filler`: the entries are those of the open file."""

    def fill(
        self, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor], stagings: Mapping[torch.device, Staging]
    ) -> None:
        """See `Filler`."""
        for device, how in stagings.items():
            own = [entry for entry in entries if tensors[entry.name].device == device]
            if device.type == "cpu":
                _fill_host_memory(self._wanted.file, own, tensors, threads=how.threads, progress=how.progress)
            elif own:
                bring(self._wanted.origin_of(own), ExistingTensors(how.device, own, tensors), how)


def _fill_host_memory(
    file: Opened,
    entries: Sequence[Entry],
    tensors: Mapping[str, torch.Tensor],
    *,
    threads: int | None,
    progress: Progress | None,
) -> None:
    """Fill tensors in host memory without slots: the bytes of large ones are read to where they belong.

    The others pass through memory, batch by batch, so that it is never more than a batch needs.
    """
    on_storage = by_storage(entries)
    alone = {number: group for number, group in on_storage.items() if file.stands_alone(number)}
    places = {
        number: memory.data_ptr()
        for number, memory in direct_places(alone, tensors).items()
        if file.storage_sizes[number] == memory.numel()
    }
    file.fill(places, threads=threads, progress=progress)
    done = sum(file.storage_sizes[number] for number in places)
    for batch in file.batches([number for number in on_storage if number not in places]):

        def report(count: int, done: int = done) -> None:
            assert progress is not None
            progress(done + count)

        bytes_of = file.bring(
            batch, threads=threads, verify=True, progress=None if progress is None else report, mapped=False
        )
        group = [entry for number in batch for entry in on_storage[number]]
        loaded = build_tensors(group, bytes_of, torch.device("cpu"))
        copy_pairs(
            [without_repeats(tensors[entry.name], tensor.detach()) for entry, tensor in zip(group, loaded, strict=True)]
        )
        done += sum(file.storage_sizes[number] for number in batch)
