"""Room for a file: asked for before a save begins, reserved before the first write.

A save that cannot fit should fail in its first millisecond, not in its last.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from fastckpt.errors import OutOfSpaceError

_UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}
"""What fallocate says where the file system cannot reserve space."""

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")


def readable_size(size: int) -> str:
    """A size in bytes as a person reads it: ``1.5 GiB``."""
    if size < 1024:
        return f"{size} bytes"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    return f"{size / 1024**power:.1f} {_UNITS[power - 1]}"


def free_bytes(place: int | str) -> int | None:
    """Bytes this process may still use on the file system of a descriptor or path; None where it does not say."""
    status = os.statvfs(place)
    if status.f_blocks == 0:
        return None  # Some network and user-space file systems leave the figures out.
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    return blocks * status.f_frsize


def check_space(place: int | str, needed: int, path: str) -> None:
    """Raise OutOfSpaceError if fewer than ``needed`` bytes are free on the file system of a descriptor or path.

    Space can go while one writes, and quotas are not counted here, so passing
    promises nothing; it only spares the user a long wait for a sure failure.
    """
    free = free_bytes(place)
    if free is not None and free < needed:
        raise OutOfSpaceError(
            f"not enough free space: {readable_size(needed)} needed, {readable_size(free)} free",
            errno=errno.ENOSPC,
            path=path,
            expected=f"{needed} bytes",
            actual=f"{free} bytes",
            next_step=f"free {readable_size(needed - free)} there, or save to another file system",
        )


def reserve_space(fd: int, size: int, path: str) -> None:
    """Make the file ``size`` bytes long, with its blocks reserved; what is unwritten reads as zeros.

    Where the file system cannot reserve, free space is checked and only the
    length is set: emulating it by writing zeros would double the work.

    Raises:
        OutOfSpaceError: The free space is known not to do (only where nothing can be reserved).
        OSError: The system refused, for lack of space or another reason.
    """
    if size <= 0:
        return
    code = _fallocate(fd, size)
    if code in _UNSUPPORTED:
        check_space(fd, size, path)
        os.ftruncate(fd, size)
    elif code:
        raise OSError(code, os.strerror(code))


def _fallocate(fd: int, size: int) -> int:
    """fallocate(2), which Python only has in its emulating POSIX form. Returns errno, 0 for success."""
    import ctypes  # Here, not above: it would slow the start of every command.

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        # The variant whose offsets are 64 bits wide everywhere, if there are two.
        fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    except AttributeError:
        return errno.ENOSYS
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    fallocate.restype = ctypes.c_int
    while fallocate(fd, 0, 0, size):
        code = ctypes.get_errno()
        # After a signal Python runs its handlers here; unless one raises, try again.
        if code != errno.EINTR:
            return code
    return 0
