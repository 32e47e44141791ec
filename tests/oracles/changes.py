"""Damage done to a sealed file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastckpt.constants import LEAF_SIZE

LEAF = LEAF_SIZE
SIZE = 200 * LEAF - 100
Change = Callable[[bytearray], "bytes | bytearray | None"]


def change(path: Path, how: Change) -> None:
    raw = bytearray(path.read_bytes())
    changed = how(raw)
    path.write_bytes(raw if changed is None else changed)


def zero(begin: int, size: int) -> Change:
    def change(raw: bytearray) -> None:
        raw[begin : begin + size] = bytes(len(raw[begin : begin + size]))

    return change


def flip(*offsets: int) -> Change:
    def change(raw: bytearray) -> None:
        for offset in offsets:
            raw[offset] ^= 0x10

    return change
