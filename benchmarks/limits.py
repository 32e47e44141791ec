"""What the machine can do at best: the same bytes moved with nothing but system calls.

Each limit is the plainest program that does the job, on the best number of
threads; Python only hands out the blocks, the calls release the GIL.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import xxhash

BLOCK = 8 * 1024 * 1024
MADV_POPULATE_READ = 22
"""Of Linux 5.14 and later; Python has no name for it."""


def _blocks(size: int, threads: int, work: Callable[[int, int], object], block: int = BLOCK) -> None:
    """Call ``work(offset, size)`` for every block on ``threads`` threads."""
    # The threads take from one iterator: a task of the pool for each block would cost as much as the block.
    starts = iter(range(0, size, block))

    def take() -> None:
        for start in starts:
            work(start, min(block, size - start))

    with ThreadPoolExecutor(threads) as pool:
        for task in [pool.submit(take) for _ in range(threads)]:
            task.result()


def huge_memory(size: int) -> memoryview:
    """Fresh private memory, 2 MiB aligned, advised as huge pages, not touched."""
    # Python's default is a shared mapping, for which the kernel gives no huge pages.
    region = mmap.mmap(-1, size + 2 * 1024 * 1024, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    address = np.frombuffer(region, dtype=np.uint8).ctypes.data
    start = -address % (2 * 1024 * 1024)
    return memoryview(region)[start : start + size]


def touched_memory(size: int) -> memoryview:
    """Memory whose pages are all there already."""
    memory = huge_memory(size)
    np.frombuffer(memory, dtype=np.uint8)[:] = 1
    return memory


def settle(size: int) -> None:
    """Touch ``size`` bytes of fresh memory and give them back.

    On a virtual machine the first touch of a page that the host does not hold
    yet costs far more than the page fault itself. After this, memory that the
    next job takes is real, whichever job it is.
    """
    touched_memory(size)


def copy_memory(source: memoryview, target: memoryview, threads: int) -> None:
    """memcpy."""
    a, b = np.frombuffer(source, dtype=np.uint8), np.frombuffer(target, dtype=np.uint8)
    _blocks(len(a), threads, lambda at, n: np.copyto(b[at : at + n], a[at : at + n]))


def read_map(path: str, threads: int, *, populated: bool = False) -> mmap.mmap:
    """Hash a warm file with the xxhash package through a fresh map, which is returned: every byte is touched once.

    Nothing in Python adds up bytes as fast as they come from memory; this hash does, and it is what `fastckpt` owes.
    With ``populated``, the pages of each block are asked for before it is hashed, not one fault after the other.
    """
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    view = memoryview(mapped)

    def work(at: int, size: int) -> None:
        if populated:
            mapped.madvise(MADV_POPULATE_READ, at, size)
        xxhash.xxh3_64_digest(view[at : at + size])

    _blocks(len(mapped), threads, work)
    return mapped


def whole_pages(tensors: Iterable[torch.Tensor]) -> list[memoryview]:
    """The memory of contiguous tensors: of each what begins and ends with a page."""
    found = []
    for tensor in tensors:
        first, end = -(-tensor.data_ptr() // 4096) * 4096, (tensor.data_ptr() + tensor.nbytes) // 4096 * 4096
        if first < end:
            flat = tensor.detach().view(-1).view(torch.uint8).numpy()
            found.append(memoryview(flat)[first - tensor.data_ptr() : end - tensor.data_ptr()])
    return found


def _pieces(memory: list[memoryview], size: int) -> list[tuple[memoryview, int]]:
    """Blocks of memory, whole pages in all, and where each stands in a file of that size."""
    pieces, begin = [], 0
    for part in memory:
        for at in range(0, len(part), BLOCK):
            block = part[at : min(at + BLOCK, at + (size - begin) // 4096 * 4096)]
            if not block:
                return pieces
            pieces.append((block, begin))
            begin += len(block)
    return pieces


def read_file(path: str, target: list[memoryview], threads: int, *, direct: bool) -> None:
    """pread a file into memory, as far as that goes; with ``direct``, past the page cache."""
    flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
    fd = os.open(path, flags)
    try:
        pieces = _pieces(target, os.fstat(fd).st_size)

        def work(number: int, _: int) -> None:
            block, begin = pieces[number]
            done = 0
            while done < len(block):
                done += os.preadv(fd, [block[done:]], begin + done)

        _blocks(len(pieces), threads, work, 1)
    finally:
        os.close(fd)


def read_fresh(path: str, threads: int, *, direct: bool) -> memoryview:
    """pread a file into fresh huge pages, which are returned; with ``direct``, past the page cache."""
    target = huge_memory(os.path.getsize(path))
    read_file(path, [target], threads, direct=direct)
    return target


def write_file(
    path: str, source: list[memoryview], threads: int, *, direct: bool, sync: bool, hashed: bool = False
) -> None:
    """pwrite whole pages of memory to a preallocated new file, one behind the other; with ``sync``, fsync at the end.

    With ``hashed``, each block is read by the xxhash package before it is written. A disk that is as fast as memory is
    slower beside that: this is the limit of a save that proves what it writes.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0)
    fd = os.open(path, flags, 0o644)
    try:
        pieces = _pieces(source, sum(map(len, source)))
        if direct:
            os.posix_fallocate(fd, 0, sum(len(block) for block, _ in pieces))

        def work(number: int, _: int) -> None:
            block, begin = pieces[number]
            if hashed:
                xxhash.xxh3_64_digest(block)
            done = 0
            while done < len(block):
                done += os.pwrite(fd, block[done:], begin + done)

        _blocks(len(pieces), threads, work, 1)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def evict(path: str) -> None:
    """Drop a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def warm(path: str) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(BLOCK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
