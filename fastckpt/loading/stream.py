"""`fastckpt.stream`, and loads to a device: tensors as their bytes arrive, each proven first."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any, Literal

import torch

from fastckpt.collector import collector_paused
from fastckpt.io.file_object import Readables, is_path
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.layout.entries import by_storage
from fastckpt.loading.opening import opened
from fastckpt.remote.path import Options, as_place, located
from fastckpt.staging.device import device_of, parse_device
from fastckpt.staging.regions import Region
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import EngineName, FreshStorages, Staging, Verify, arrivals, bring, staging_for
from fastckpt.tensor.rebuild import build_on


def stream(
    path: Readables,
    *,
    device: str | torch.device = "cpu",
    keys: str | Iterable[str] | None = None,
    verify: Verify = True,
    ring: Ring | None = None,
    threads: int | None = None,
    engine: EngineName = "auto",
    storage_options: Options | None = None,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The tensors of a file one after the other, each verified before it is handed out.

    They come in the order in which their bytes lie in the file; tensors that
    share a storage come together. While one is in use the next ones are read.
    Host memory is bounded by the ring; tensors that are dropped again take no
    memory. Closing the generator, or leaving the loop over it, stops the reading.

    Args:
        path: What `fastckpt.load` takes. Of several files 64 MiB, or a larger tensor, are read at a time, and always
            verified as far as they can be.
        device: Where the tensors shall be.
        keys: Flat names or globs; only these tensors are read.
        verify: See `fastckpt.load`.
        ring: The slots that the bytes pass through; None is ``Ring()``, to host memory as much in smaller slots.
        threads: Threads that read; None takes one per CPU, more for a cold file.
        engine: See `fastckpt.load`.
        storage_options: See `fastckpt.load`.

    Yields:
        Flat name and tensor, with strides, views, aliases and flags as saved.

    Raises:
        DamagedError: A byte of the next tensors is missing or wrong. Those
            handed out before are good.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError
        TensorNotFoundError: A key matches no tensor.
        UsageError: An argument is wrong, or what it asks for is not there.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.

    Example:
        >>> {name: tensor.shape for name, tensor in fastckpt.stream("weights.fckpt")}
        {'w': torch.Size([4])}
    """
    where = parse_device(device)
    how = staging_for(device_of(where), verify=verify, ring=ring, engine=engine, threads=threads)
    place = located(path, storage_options)
    if is_path(place) and is_directory_of_checkpoints(place):
        from fastckpt.loading.stream_set import stream_set

        return stream_set(as_place(place), where, keys, threads=threads)
    return stream_through(place, how, keys)


def stream_through(
    path: Readables, how: Staging, keys: str | Iterable[str] | None
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """`stream`, with its arguments checked."""
    with opened(path, keys, sealed=how.proof is not None) as wanted:
        on_storage = by_storage(wanted.entries)
        origin = wanted.origin_of(wanted.entries)
        destination = FreshStorages(how.device)
        with closing(arrivals(origin, destination, how)) as flow:
            for arrival in flow:
                region, suspects = arrival.region, arrival.suspects
                end = min((suspect.offset for suspect in suspects), default=region.nbytes)
                storages = destination.storages(region, arrival.take())
                for storage, offset, nbytes in region.placed:
                    if offset + nbytes > end:
                        break
                    memory = {storage: storages.pop(storage)}
                    built = build_on(on_storage[storage], memory.__getitem__)
                    names = [entry.name for entry in on_storage[storage]]
                    group = list(zip(names, built, strict=True))
                    del memory, built  # From here on the consumer alone keeps tensors alive.
                    while group:
                        yield group.pop(0)
                if suspects:
                    origin.raise_damage(suspects, verify=how.proof is not None)


def load_through(
    path: Readables, how: Staging, keys: str | Iterable[str] | None, *, opaque: Literal["error", "keep"] = "error"
) -> Any:
    """`fastckpt.load` to the device of ``how``."""
    with opened(path, keys, opaque=opaque, sealed=how.proof is not None) as wanted:
        numbers: dict[int, list[int]] = {}
        for number, entry in enumerate(wanted.entries):
            numbers.setdefault(entry.storage, []).append(number)
        tensors: dict[int, torch.Tensor] = {}
        destination = FreshStorages(how.device)

        def use(region: Region, memory: torch.Tensor) -> None:
            # The tensors are made while others are still on their way.
            with collector_paused():
                storages = destination.storages(region, memory)
                here = [number for storage in storages for number in numbers[storage]]
                built = build_on([wanted.entries[number] for number in here], storages.__getitem__)
                tensors.update(zip(here, built, strict=True))

        bring(wanted.origin_of(wanted.entries), destination, how, use)
        return wanted.state([tensors[number] for number in range(len(wanted.entries))])
