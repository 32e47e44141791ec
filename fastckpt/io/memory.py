"""Fresh memory for loads, in huge pages.

Filling fresh 4 KiB pages is several times slower than the copy itself, because
each page is a fault. Anonymous memory aligned to 2 MiB and advised as huge
takes one fault per 2 MiB.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Final

from fastckpt import _core
from fastckpt.constants import ALIGNMENT, PACK_ALIGNMENT
from fastckpt.layout.blocks import align

HUGE_PAGE: Final = 2 * 1024 * 1024
"""Size in bytes of a huge page on x86-64 and, with 4 KiB base pages, on aarch64."""

_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
"""Not the module's default: in a shared mapping, what a forked process writes to its
tensors would change those of its parent, and the kernel gives no huge pages for it."""

ARENA_SIZE: Final = 64 * 1024 * 1024
"""Regions smaller than this share one mapping of about this size: a process may
have only some 65,000 mappings (vm.max_map_count), a checkpoint more storages."""


def allocate(size: int) -> memoryview:
    """``size`` writable zero bytes, at an address that is a multiple of 4 KiB.

    From 2 MiB on they are huge pages where the system grants them. The memory
    is returned when nothing refers to the view or to tensors on it any more.
    """
    if size < HUGE_PAGE:
        return memoryview(mmap.mmap(-1, max(size, 1), flags=_PRIVATE))[:size]
    region = mmap.mmap(-1, size + HUGE_PAGE, flags=_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Where the kernel has no huge pages, ordinary ones serve as well.
        with contextlib.suppress(OSError):
            region.madvise(mmap.MADV_HUGEPAGE)
    start = -_core.address(region) % HUGE_PAGE
    return memoryview(region)[start : start + size]


def view(address: int, size: int) -> memoryview:
    """``size`` bytes of memory at an address, writable; whoever gave the address keeps them alive."""
    import ctypes  # Here, not above: it would slow the start of every command.

    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


def phase(origin: int) -> int:
    """Where within 4 KiB memory should begin that bytes from this offset in a file are read to.

    Where they begin in the file: then direct reads need no copy. Tensors are still aligned to 64 bytes.
    """
    return origin % ALIGNMENT if origin % PACK_ALIGNMENT == 0 else 0


def allocate_regions(sizes: list[int], origins: list[int] | None = None) -> list[memoryview]:
    """A writable region of each size (in bytes), aligned to 4 KiB, small ones to 64 bytes.

    Neighbours share a mapping until it has ARENA_SIZE bytes, so that one
    tensor that stays alive holds at most that much more memory than its own.

    Args:
        sizes: Bytes of each.
        origins: Where in a file the bytes of each begin; large regions have the `phase` of these.
    """
    phases = list(map(phase, origins)) if origins else [0] * len(sizes)
    regions: list[memoryview] = []
    start = 0
    while start < len(sizes):
        offsets: list[int] = []
        total = 0
        for size, begin in zip(sizes[start:], phases[start:], strict=True):
            offset = align(total, PACK_ALIGNMENT) if size < ALIGNMENT else align(total - begin) + begin
            if offsets and offset + size > ARENA_SIZE:
                break
            offsets.append(offset)
            total = offset + size
        arena = allocate(total)
        regions += [arena[at : at + size] for at, size in zip(offsets, sizes[start:], strict=False)]
        start += len(offsets)
    return regions
