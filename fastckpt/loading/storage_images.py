"""Rebuilding the bytes of a file's storage from the tensors that are in memory now.

A leaf digest covers all bytes of its leaf, also those that belong to no tensor.
So the storage behind a tensor is taken whole where it has the same layout as
in the file; else the tensors are laid out as they are in the file, and every
other byte is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG
from fastckpt.layout.covered import Covered
from fastckpt.layout.entries import Entry
from fastckpt.layout.records import Record
from fastckpt.staging.fetching import bytes_of, laid_out
from fastckpt.tensor.dtypes import torch_dtype

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(slots=True)
class Image:
    """The bytes of a storage or record as the tensors here give them.

    Attributes:
        raw: uint8 [nbytes], contiguous.
        known: Which of them are given; the others mean nothing.
        shown: The tensors they were taken from.
    """

    raw: torch.Tensor
    known: Covered = field(default_factory=Covered)
    shown: set[str] = field(default_factory=set)


def storage_images(
    nbytes: int, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor]
) -> tuple[list[Image], set[str]]:
    """Every way in which the tensors give the bytes of one storage.

    There are several where tensors share the storage in the file and not
    here: each of them must be the same as the file.

    Args:
        nbytes: Size of the storage in the file.
        entries: Those on it.
        tensors: The tensors that are here, by name.

    Returns:
        The images, and the tensors that none of them shows: their elements
        leave holes or overlap, and no storage here has the same layout.
    """
    images: list[Image] = []
    whole: dict[int, Image] = {}
    hidden: set[str] = set()
    for entry in entries:
        tensor = tensors.get(entry.name)
        if tensor is None:
            continue
        storage = tensor.untyped_storage()
        if storage.nbytes() == nbytes and _same_layout(entry, tensor):
            if storage._cdata not in whole:
                whole[storage._cdata] = Image(bytes_of(storage), Covered([(0, nbytes)]))
                images.append(whole[storage._cdata])
            whole[storage._cdata].shown.add(entry.name)
        elif not entry.nbytes:
            continue
        elif is_dense(entry):
            _lay_out(entry, tensor, nbytes, images)
        else:
            hidden.add(entry.name)
    if len(images) > 1:
        for image in images:
            _complete(image, images, nbytes)
    return images, hidden


def _complete(image: Image, others: Sequence[Image], nbytes: int) -> None:
    """Take the bytes that an image lacks from others: whatever is the same as the file proves what stands beside it."""
    for other in others:
        end = 0
        for start, stop in [*image.known, (nbytes, nbytes)]:
            for a, b in other.known:
                first, last = max(a, end), min(b, start)
                if first < last:
                    image.raw[first:last] = other.raw[first:last].to(image.raw.device)
                    image.known.add(first, last)
            end = stop


def record_images(record: Record, by_storage: Mapping[int, list[Image]], device: torch.device) -> list[Image]:
    """Every way in which the tensors give the raw bytes of a record that holds several storages."""
    images = []
    for variant in range(max(map(len, by_storage.values()), default=0)):
        known = Covered()
        parts = []
        end = 0
        for packed in record.storages:
            known.add(end, packed.offset)  # The gaps are zero.
            ways = by_storage.get(packed.storage)
            image = ways[min(variant, len(ways) - 1)] if ways else None
            parts.append(
                image.raw.to(device) if image else torch.zeros(packed.nbytes, dtype=torch.uint8, device=device)
            )
            for start, stop in image.known if image else ():
                known.add(packed.offset + start, packed.offset + stop)
            end = packed.offset + packed.nbytes
        whole = Image(laid_out(record, parts), known)
        whole.shown = {name for ways in by_storage.values() for image in ways for name in image.shown}
        images.append(whole)
    return images


def _same_layout(entry: Entry, tensor: torch.Tensor) -> bool:
    return (
        entry.stride == tensor.stride()
        and entry.storage_offset == tensor.storage_offset()
        and bool(entry.flags & ENTRY_FLAG_CONJ) == tensor.is_conj()
        and bool(entry.flags & ENTRY_FLAG_NEG) == tensor.is_neg()
    )


def is_dense(entry: Entry) -> bool:
    """Whether the elements fill their span, each byte once."""
    expected = 1
    for step, extent in sorted(zip(entry.stride, entry.shape, strict=True)):
        if extent != 1:
            if step != expected:
                return False
            expected = step * extent
    return True


def _lay_out(entry: Entry, tensor: torch.Tensor, nbytes: int, images: list[Image]) -> None:
    """Put the bytes of a tensor where they are in the file, into the first image that has none there."""
    start, end = entry.span
    plain = entry.is_contiguous and not entry.flags & _LAZY
    if plain and nbytes == entry.nbytes and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        raw = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        raw.set_(tensor.untyped_storage(), tensor.storage_offset() * tensor.element_size(), (nbytes,), (1,))
        images.append(Image(raw, Covered([(0, nbytes)]), {entry.name}))
        return
    for image in images:
        if not image.known.overlaps(start, end) and image.raw.device == tensor.device:
            break
    else:
        image = Image(torch.zeros(nbytes, dtype=torch.uint8, device=tensor.device))
        images.append(image)
    target = torch.empty(0, dtype=torch_dtype(entry.dtype), device=tensor.device)
    target.set_(image.raw.untyped_storage(), entry.storage_offset, entry.shape, entry.stride)
    _copy_bits(target, tensor.detach(), entry.flags)
    image.known.add(start, end)
    image.shown.add(entry.name)


_LAZY = ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG


def _copy_bits(target: torch.Tensor, source: torch.Tensor, flags: int) -> None:
    """Copy bit for bit; ``flags`` say what the bits in ``target`` stand for.

    Not with torch's own conjugation: that of complex32 makes a signalling NaN a quiet one.
    """
    there, here = _as_bits(target), _as_bits(source)
    there.copy_(here)
    conj = bool(flags & ENTRY_FLAG_CONJ) != source.is_conj()
    neg = bool(flags & ENTRY_FLAG_NEG) != source.is_neg()
    if conj or neg:
        sign = torch.iinfo(there.dtype).min
        signs = [sign * neg, sign * (neg != conj)] if source.is_complex() else [sign * neg]
        there.bitwise_xor_(torch.tensor(signs, dtype=there.dtype, device=there.device))


def _as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """The parts of the elements as integers, [*shape, 2] for complex numbers, else [*shape, 1]; as they are stored."""
    parts = 2 if tensor.is_complex() else 1
    bits = torch.empty(0, dtype=_BITS[tensor.element_size() // parts], device=tensor.device)
    stride = (*(step * parts for step in tensor.stride()), 1)
    return bits.set_(tensor.untyped_storage(), tensor.storage_offset() * parts, (*tensor.shape, parts), stride)
