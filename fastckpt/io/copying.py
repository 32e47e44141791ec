"""Bytes out of several files into one."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """Where the bytes of a storage begin: a file descriptor and an offset."""

    fd: int
    offset: int
