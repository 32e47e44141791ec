"""What the machine can do at best: the same bytes moved with nothing but system calls.

Each limit is the plainest program that does the job, on the best number of
threads; Python only hands out the blocks, the calls release the GIL.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BLOCK = 8 * 1024 * 1024


def _blocks(size: int, threads: int, work: Callable[[int, int], None], block: int = BLOCK) -> None:
    """Call ``work(offset, size)`` for every block on ``threads`` threads."""
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, size, block)
        list(pool.map(lambda start: work(start, min(block, size - start)), starts))


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


def read_map(path: str, threads: int, *, populate: bool) -> mmap.mmap:
    """Sum a warm file through a fresh map, which is returned: every byte is touched once."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    words = np.frombuffer(mapped, dtype=np.uint64, count=len(mapped) // 8)
    populate_read = 22  # MADV_POPULATE_READ, Linux 5.14

    def work(at: int, size: int) -> None:
        if populate:
            mapped.madvise(populate_read, at, size)
        np.add.reduce(words[at // 8 : (at + size) // 8])

    _blocks(len(mapped), threads, work, block=1024 * 1024)
    return mapped


def read_file(path: str, target: memoryview, threads: int, *, direct: bool) -> None:
    """pread a file into ``target``; with ``direct``, past the page cache."""
    flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
    fd = os.open(path, flags)
    try:
        size = min(os.fstat(fd).st_size, len(target)) // 4096 * 4096

        def work(at: int, count: int) -> None:
            done = 0
            while done < count:
                done += os.preadv(fd, [target[at + done : at + count]], at + done)

        _blocks(size, threads, work)
    finally:
        os.close(fd)


def read_fresh(path: str, threads: int, *, direct: bool) -> memoryview:
    """pread a file into fresh huge pages, which are returned; with ``direct``, past the page cache."""
    target = huge_memory(os.path.getsize(path))
    read_file(path, target, threads, direct=direct)
    return target


def write_file(path: str, source: memoryview, threads: int, *, direct: bool, sync: bool) -> None:
    """pwrite ``source`` to a preallocated new file; with ``sync``, fsync at the end."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0)
    fd = os.open(path, flags, 0o644)
    try:
        size = len(source) // 4096 * 4096
        if direct:
            os.posix_fallocate(fd, 0, size)

        def work(at: int, count: int) -> None:
            done = 0
            while done < count:
                done += os.pwrite(fd, source[at + done : at + count], at + done)

        _blocks(size, threads, work)
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
