"""A destination that exists: the tensors of a model, filled without a second copy of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG
from fastckpt.layout.dtypes import WIDEST
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.staging.device import Device, Work
from fastckpt.staging.regions import Region
from fastckpt.tensor.rebuild import build_on

Pair = tuple[torch.Tensor, torch.Tensor]
"""A destination and what is to be copied into it."""

T = TypeVar("T")


class ExistingTensors:
    """Tensors on one device, by name (a `pipeline.Destination`).

    A storage whose bytes are those of one contiguous tensor arrives in that
    tensor directly; others pass through memory that is freed behind them. The
    cargo is of no interest: it keeps that memory alive while it is used.
    """

    def __init__(self, device: Device, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor]) -> None:
        self._device = device
        self._tensors = tensors
        self._on_storage = by_storage(entries)
        self._direct = direct_places(self._on_storage, tensors)

    def alone(self, region: Region) -> bool:
        """See `Destination`."""
        direct = self._direct.get(region.placed[0].storage)
        return region.is_one_storage and direct is not None and direct.numel() == region.nbytes

    def place(self, region: Region) -> torch.Tensor:
        """See `Destination`."""
        if self.alone(region):
            return self._direct[region.placed[0].storage]
        return self._device.allocate([region.nbytes])[0]

    def complete(self, region: Region, memory: torch.Tensor, then: Callable[[Work], None]) -> list[Pair]:
        """See `Destination`."""
        if self.alone(region):
            return []
        pairs: list[Pair] = []
        unaligned: list[Pair] = []
        for number, offset, nbytes in region.placed:
            there = memory
            if offset % WIDEST:  # In a sealed file of another format a tensor can lie anywhere.
                there = self._device.allocate([nbytes])[0]
                unaligned.append((there, memory[offset : offset + nbytes]))
                offset = 0
            for entry in self._on_storage[number]:
                moved = entry._replace(storage_offset=entry.storage_offset + offset // entry.itemsize)
                (arrived,) = build_on([moved], lambda _, there=there: there)  # type: ignore[misc]
                pairs.append(without_repeats(self._tensors[entry.name], arrived.detach()))

        def copy() -> None:
            for to, origin in unaligned:
                to.copy_(origin)
            copy_pairs(pairs)

        then(copy)
        return [*unaligned, *pairs]


def direct_places(
    on_storage: Mapping[int, Sequence[Entry]], tensors: Mapping[str, torch.Tensor]
) -> dict[int, torch.Tensor]:
    """The memory (uint8) of every storage whose bytes can go to their tensor as they are, apart from all others.

    Args:
        on_storage: The entries on each storage.
        tensors: Where they shall go.
    """
    places = {number: bytes_in_place(group, tensors) for number, group in on_storage.items()}
    found = [(number, memory) for number, memory in places.items() if memory is not None]
    return dict(apart(found, lambda item: (item[1].data_ptr(), item[1].numel())))


def bytes_in_place(entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The memory that the bytes of a storage can go to as they are, if there is one; uint8 [nbytes].

    Args:
        entries: All entries on the storage.
        tensors: Where they shall go.
    """
    first = tensors[entries[0].name]
    for entry in entries:
        tensor = tensors[entry.name]
        whole = entry.is_contiguous and entry.storage_offset == 0 and entry.nbytes > 0
        plain = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
        lazy = entry.flags & (ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG)
        if not whole or not plain or lazy or tensor.data_ptr() != first.data_ptr() or tensor.nbytes != first.nbytes:
            return None
    memory = torch.empty(0, dtype=torch.uint8, device=first.device)
    return memory.set_(first.untyped_storage(), first.storage_offset() * first.element_size(), (first.nbytes,), (1,))


def apart(items: Iterable[T], span: Callable[[T], tuple[int, int]]) -> list[T]:
    """The items without those whose memory overlaps: these must be written one after the other.

    Args:
        items: What is to be written.
        span: Address and number of bytes of an item.
    """
    ordered = sorted(items, key=lambda item: span(item)[0])
    shared: set[int] = set()
    reach, last = 0, -1
    for number, item in enumerate(ordered):
        start, size = span(item)
        if start < reach:
            shared |= {last, number}
        if start + size > reach:
            reach, last = start + size, number
    return [item for number, item in enumerate(ordered) if number not in shared]


def without_repeats(destination: torch.Tensor, source: torch.Tensor) -> Pair:
    """Both narrowed to one element where many share their memory in the destination (stride 0)."""
    for dimension, step in enumerate(destination.stride()):
        if step == 0 and destination.shape[dimension] > 1:
            destination, source = destination.narrow(dimension, 0, 1), source.narrow(dimension, 0, 1)
    return destination, source


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, whatever stride a dimension of one element has."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def copy_pairs(pairs: Sequence[Pair]) -> None:
    """Copy in place, bit for bit, as many as possible in one launch.

    As integers, because no kernel for many tensors at once knows the less common dtypes.
    """
    flat: list[Pair] = []
    for destination, source in pairs:
        if not destination.numel():
            continue
        if any(tensor.is_conj() or tensor.is_neg() for tensor in (destination, source)):
            destination.copy_(source)
        elif destination.is_contiguous() and source.is_contiguous():
            flat.append((_raw(destination), _raw(source)))
        else:
            bits = _BITS.get(destination.element_size(), destination.dtype)
            destination.view(bits).copy_(source.view(bits))
    if flat:
        torch._foreach_copy_([destination for destination, _ in flat], [source for _, source in flat])
