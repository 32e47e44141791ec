"""How much of a file system shall stay free, and how much is."""

from __future__ import annotations

import math
import os
import re
from typing import Final

from fastckpt.errors import UsageError
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.space import free_bytes

_UNITS: Final[dict[str, int]] = {"B": 1} | {
    prefix + suffix: base**power
    for base, suffix in ((1000, "B"), (1024, "iB"))
    for power, prefix in enumerate(("K", "M", "G", "T"), 1)
}
_AMOUNT: Final = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[KMGT]?i?B)?\s*", re.IGNORECASE | re.ASCII)


def amount(text: str | int, *, total: int) -> int:
    """Bytes: of ``"10%"``, of ``total``. Raises UsageError if it is no amount."""
    if type(text) is int and text >= 0:
        return text
    match = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match["unit"] == "%" and float(match["number"]) > 100):
        raise UsageError("min_free is not an amount of space", expected="10%, 50GB, 50GiB or bytes", actual=text)
    number, unit = float(match["number"]), match["unit"] or "B"
    if unit == "%":
        return math.ceil(total * number / 100)
    return math.ceil(number * _UNITS[unit.upper().replace("IB", "iB")])


def space(directory: str, min_free: str | int) -> tuple[int, int]:
    """Bytes that are free, and bytes that should be.

    Raises:
        UsageError: The file system does not say.
        CheckpointIOError: It cannot be asked.
    """
    with typed_os_errors(directory, doing="look up the free space"):
        status, free = os.statvfs(directory), free_bytes(directory)
    if free is None:
        raise UsageError("this file system does not say how much is free: leave out min_free", path=directory)
    return free, amount(min_free, total=status.f_blocks * status.f_frsize)
