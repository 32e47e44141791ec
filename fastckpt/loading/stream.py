"""`fastckpt.stream`, and loads to a device: tensors as their bytes arrive, each proven first."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any

import torch

from fastckpt.collector import collector_paused
from fastckpt.layout.entries import by_storage
from fastckpt.loading.opening import opened
from fastckpt.staging.device import device_of, parse_device
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import EngineName, FreshStorages, Staging, Verify, arrivals, bring, staging_for
from fastckpt.tensor.rebuild import build_on


def stream(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    keys: str | Iterable[str] | None = None,
    verify: Verify = True,
    ring: Ring | None = None,
    threads: int | None = None,
    engine: EngineName = "auto",
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The tensors of a file one after the other, each verified before it is handed out.

    They come in the order in which their bytes lie in the file; tensors that
    share a storage come together. While one is in use the next ones are read.
    Host memory is bounded by the ring; tensors that are dropped again take no
    memory. Closing the generator, or leaving the loop over it, stops the reading.

    Args:
        path: What `fastckpt.load` takes.
        device: Where the tensors shall be.
        keys: Flat names or globs; only these tensors are read.
        verify: See `fastckpt.load`.
        ring: The slots that the bytes pass through; None is ``Ring()``.
        threads: Threads that read; None takes one per CPU, more for a cold file.
        engine: See `fastckpt.load`.

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
    how = staging_for(device_of(parse_device(device)), verify=verify, ring=ring, engine=engine, threads=threads)
    return stream_through(path, how, keys)


def stream_through(
    path: str | os.PathLike[str], how: Staging, keys: str | Iterable[str] | None
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """`stream`, with its arguments checked."""
    with opened(path, keys) as wanted:
        on_storage = by_storage(wanted.entries)
        origin = wanted.origin_of(wanted.entries)
        with closing(arrivals(origin, FreshStorages(how.device), how)) as flow:
            for arrival in flow:
                if arrival.suspects:
                    origin.raise_damage(arrival.suspects, verify=how.proof is not None)
                cargo = arrival.cargo
                del arrival  # From here on the consumer alone keeps tensors alive.
                for storage in list(cargo):
                    memory = {storage: cargo.pop(storage)}
                    built = build_on(on_storage[storage], memory.__getitem__)
                    names = [entry.name for entry in on_storage[storage]]
                    group = list(zip(names, built, strict=True))
                    del memory, built
                    while group:
                        yield group.pop(0)


def load_through(path: str | os.PathLike[str], how: Staging, keys: str | Iterable[str] | None) -> Any:
    """`fastckpt.load` to the device of ``how``."""
    with opened(path, keys) as wanted:
        memories: dict[int, torch.Tensor] = {}
        for cargo in bring(wanted.origin_of(wanted.entries), FreshStorages(how.device), how):
            memories |= cargo
        with collector_paused():
            return wanted.state(list(build_on(wanted.entries, memories.__getitem__)))
