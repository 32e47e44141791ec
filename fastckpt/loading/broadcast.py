"""`fastckpt.load(share="broadcast")`: one process reads and verifies, the others receive.

Eight processes that load the same file read it eight times, and the disk is
shared by all of them. Here the first process of the group loads as it would
alone; its storages, proven by then, go to the others over the links between
devices. Before bytes flow everybody has said that they can be received: a
missing file, damage or full memory on any process is an error on all of them,
and nobody waits for someone who has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from fastckpt.errors import CheckpointIOError, FastckptError, UsageError
from fastckpt.layout.entries import Entry
from fastckpt.layout.selection import select
from fastckpt.staging.device import device_of
from fastckpt.staging.fetching import bytes_of
from fastckpt.tensor.flatten import flatten
from fastckpt.tensor.rebuild import build_on, named, unflatten

BUCKET = 64 * 1024 * 1024
"""Bytes that go in one broadcast: enough to fill a link, little enough to be kept beside the tensors."""

Keys = str | Iterable[str] | None


@dataclass(frozen=True, slots=True)
class _Structure:
    """All about the state but its bytes, from the process that has read it.

    Attributes:
        tree: The encoded tree.
        entries: The tensors read.
        sizes: Bytes of every storage.
        chosen: What each process asked for, by name; None: everything, nested as it was saved.
    """

    tree: bytes
    entries: list[Entry]
    sizes: list[int]
    chosen: list[set[str] | None]


class _Part(NamedTuple):
    """Bytes ``[start, start + size)`` of a storage, at ``offset`` in its bucket."""

    storage: int
    start: int
    size: int
    offset: int


def load_shared(
    read: Callable[..., Any], path: str, *, share: str, device: torch.device, keys: Keys, group: Any
) -> Any:
    """Read on the first process of a group, receive on the others; a collective call.

    Args:
        read: `fastckpt.load` with all arguments but ``keys``. Called on one process only.
        path: The file, for messages.
        share: ``"broadcast"``, the only way there is.
        device: Where this process wants its tensors.
        keys: What this process wants; they may differ. All that any of them
            wants is read, once, and each keeps its own part.
        group: The process group; None is the default one.

    Returns:
        What `fastckpt.load` returns on this process alone.

    Raises:
        UsageError: There is no process group, this process is not in it, or it moves no tensors on this device.
        FastckptError: What went wrong on any process, the same on all.
    """
    if share != "broadcast":
        raise UsageError("share must be None or 'broadcast'", path=path, actual=share)
    if not (dist.is_available() and dist.is_initialized()):
        raise UsageError(
            'share="broadcast" needs a process group', path=path, next_step="torch.distributed.init_process_group"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise UsageError("this process is not in the group that shares the load", path=path)
    own = [keys] if isinstance(keys, str) else None if keys is None else list(keys)
    with _current(device):
        wanted = _gather(own, group)
        mine, storages_read = _read(read, wanted, path) if rank == 0 else (None, None)
        structure = _broadcast_object(mine, group)
        if isinstance(structure, BaseException):
            raise mine if isinstance(mine, BaseException) else structure
        chosen = structure.chosen[rank]
        entries = [entry for entry in structure.entries if chosen is None or entry.name in chosen]
        storages: dict[int, torch.Tensor] = {}
        failure: BaseException | None = None
        try:
            _require_link(device, path, group)
            storages = _storages(storages_read, structure, entries, device)
        except BaseException as error:
            failure = error
        _agree(failure, group)
        for bucket in _buckets(structure.sizes):
            _broadcast_bucket(bucket, storages, device, group, sending=rank == 0)
        tensors = list(build_on(entries, storages.__getitem__))
        return unflatten(structure.tree, tensors) if chosen is None else named(entries, tensors)


def _read(
    read: Callable[..., Any], wanted: Sequence[list[str] | None], path: str
) -> tuple[_Structure | BaseException, list[torch.UntypedStorage] | None]:
    """Read what any process wants: its structure and the state, or the error that all shall see."""
    try:
        # Everything, if one of them wants that.
        state = read(keys=None if None in wanted else [key for keys in wanted if keys is not None for key in keys])
        flat = flatten(state)
        chosen = [
            None if keys is None else {entry.name for entry in select(flat.entries, keys, path)} for keys in wanted
        ]
        sizes = [storage.nbytes() for storage in flat.storages]
        return _Structure(flat.tree, flat.entries, sizes, chosen), flat.storages
    except BaseException as error:
        return error, None


def _require_link(device: torch.device, path: str, group: Any) -> None:
    """Raise UsageError if a group cannot move tensors that lie on this kind of device."""
    links = dist.get_backend_config(group)  # "cuda:nccl", "cpu:gloo,cuda:nccl", ...
    if f"{device.type}:" not in links:
        raise UsageError(
            f"the process group moves no tensors on {device.type}",
            path=path,
            expected=f"a backend for {device.type}",
            actual=links,
            next_step='load to a device that it serves, or make a group with backend="cpu:gloo,cuda:nccl"',
        )


def _storages(
    read: Sequence[torch.UntypedStorage] | None, structure: _Structure, entries: Sequence[Entry], device: torch.device
) -> dict[int, torch.Tensor]:
    """The bytes of the storages: those that were read, or room for those that this process wants."""
    if read is not None:
        return {number: bytes_of(storage) for number, storage in enumerate(read)}
    numbers = sorted({entry.storage for entry in entries})
    rooms = device_of(device).allocate([structure.sizes[number] for number in numbers])
    return dict(zip(numbers, rooms, strict=True))


def _buckets(sizes: Sequence[int]) -> Iterator[list[_Part]]:
    """Cut large storages and bring small ones together, the same on every process."""
    bucket: list[_Part] = []
    filled = 0
    for storage, nbytes in enumerate(sizes):
        start = 0
        while start < nbytes:
            size = min(nbytes - start, BUCKET)
            if filled + size > BUCKET:
                yield bucket
                bucket, filled = [], 0
            bucket.append(_Part(storage, start, size, filled))
            filled += size
            start += size
    if bucket:
        yield bucket


def _broadcast_bucket(
    bucket: list[_Part], storages: dict[int, torch.Tensor], device: torch.device, group: Any, *, sending: bool
) -> None:
    here = {
        part.storage: storages[part.storage][part.start : part.start + part.size]
        for part in bucket
        if part.storage in storages
    }
    if len(bucket) == 1 and here:
        dist.broadcast(here[bucket[0].storage], _first(group), group=group)
        return
    if sending:
        together = torch.cat([here[part.storage] for part in bucket])
    else:
        together = torch.empty(bucket[-1].offset + bucket[-1].size, dtype=torch.uint8, device=device)
    dist.broadcast(together, _first(group), group=group)
    if not sending:
        for part in bucket:
            if part.storage in here:
                here[part.storage].copy_(together[part.offset : part.offset + part.size])


def _agree(failure: BaseException | None, group: Any) -> None:
    """Raise on every process if one of them cannot go on: its own error there, the first one elsewhere."""
    failures = [error for error in _gather(None if failure is None else _portable(failure), group) if error is not None]
    if failure is not None:
        raise failure
    if failures:
        raise failures[0]


def _portable(error: BaseException) -> FastckptError:
    """An error that can go to another process and be raised there."""
    if isinstance(error, FastckptError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return CheckpointIOError("the load was interrupted in another process of the group")
    return FastckptError(f"another process of the group failed: {type(error).__name__}: {error}")


def _first(group: Any) -> int:
    """The rank, among all processes, of the one that reads."""
    return 0 if group is None else dist.get_global_rank(group, 0)


def _gather(item: Any, group: Any) -> list[Any]:
    """What every process of the group gives, by rank."""
    items: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(items, item, group=group)
    return items


def _broadcast_object(item: Any, group: Any) -> Any:
    """What the first process gives; its errors in a form that travels."""
    items = [_portable(item) if isinstance(item, BaseException) else item]
    dist.broadcast_object_list(items, _first(group), group=group)
    return items[0]


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Collectives on objects use the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
