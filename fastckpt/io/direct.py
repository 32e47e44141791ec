"""O_DIRECT: around the page cache, where the file system lets us."""

from __future__ import annotations

import mmap
import os

from fastckpt.constants import ALIGNMENT


def open_direct(fd: int, access: int) -> int:
    """Open the file behind ``fd`` again with O_DIRECT; -1 where that does not work. Never raises OSError.

    A file system may refuse O_DIRECT when the file is opened or only when it is
    used, so one aligned page is read. Offsets, sizes and addresses of all later
    reads and writes must be multiples of 4096.

    Args:
        fd: A regular file.
        access: os.O_RDONLY or os.O_RDWR.
    """
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return -1
    try:
        # Through /proc it is the same file even when its name is gone or taken by another.
        direct = os.open(f"/proc/self/fd/{fd}", access | flag | os.O_CLOEXEC)
    except OSError:
        return -1
    with mmap.mmap(-1, ALIGNMENT) as page:  # Mapped memory is aligned to pages.
        try:
            os.preadv(direct, [page], 0)
        except OSError:
            os.close(direct)
            return -1
    return direct
