"""Which numbers of a file are NaN or infinite, and which tensors are zero: of every tensor its beginning, or all.

Without torch: in every format of floats it is the bits of the exponent that tell, and those lie in the last bytes of a
number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from fastckpt.constants import LEAF_SIZE
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import find_optimizers
from fastckpt.stored.inspection import Inspection
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened

FIRST_BYTES: Final = LEAF_SIZE
"""Bytes of each tensor that are looked at where not all are: what a .fckpt proves without more."""
_MOST_SAMPLED: Final = 4096
"""Tensors of a file whose beginning is looked at."""
_PIECE: Final = 16 * 2**20
"""Bytes of a tensor that are looked at together."""
_OVERLAP: Final = 8
"""Tensors that overlap are looked at until this many times the bytes that they lie in are read."""
_NO_NUMBERS: Final = (".step", ".zero_buffer")
"""Counters, and what is zero by design."""


class Numbers(NamedTuple):
    """What the numbers of a tensor are.

    Attributes:
        not_finite: How many are NaN or infinite, of those that were looked at.
        zero: Whether all are zero, of those that stand for a parameter; False where not all were looked at.
    """

    not_finite: int
    zero: bool


class Look(NamedTuple):
    """What was looked at in a file.

    Attributes:
        numbers: What the numbers of a tensor are, by its name; in the order of the file.
        tensors: How many tensors are made of floats.
        in_full: Whether of each of `numbers` all was looked at, and not only the first `FIRST_BYTES`.
    """

    numbers: Mapping[str, Numbers]
    tensors: int
    in_full: bool


class _Float(NamedTuple):
    """How a number that is not finite is known by its last two bytes, little-endian.

    Attributes:
        size: Bytes of a number.
        last: Has 1 at the values of the last byte that such a number can have, 0 at all others.
        before: The same for the byte before that; None where any will do.
    """

    size: int
    last: bytes
    before: bytes | None = None


def _among(values: Iterable[int]) -> bytes:
    wanted = set(values)
    return bytes(value in wanted for value in range(256))


_ALL_ONES: Final = _among((0x7F, 0xFF))
_FIVE_ONES: Final = _among((*range(0x7C, 0x80), *range(0xFC, 0x100)))
_FLOATS: Final[Mapping[str, _Float]] = {
    "float64": _Float(8, _ALL_ONES, _among(range(0xF0, 0x100))),
    "float32": _Float(4, _ALL_ONES, _among(range(0x80, 0x100))),
    "bfloat16": _Float(2, _ALL_ONES, _among(range(0x80, 0x100))),
    "float16": _Float(2, _FIVE_ONES),
    "complex128": _Float(8, _ALL_ONES, _among(range(0xF0, 0x100))),
    "complex64": _Float(4, _ALL_ONES, _among(range(0x80, 0x100))),
    "complex32": _Float(2, _FIVE_ONES),
    "float8_e5m2": _Float(1, _FIVE_ONES),
    "float8_e4m3fn": _Float(1, _ALL_ONES),
    "float8_e5m2fnuz": _Float(1, _among([0x80])),
    "float8_e4m3fnuz": _Float(1, _among([0x80])),
    "float8_e8m0fnu": _Float(1, _among([0xFF])),
}


def look(path: str, structure: Inspection, rank: int, *, deep: bool) -> Look:
    """Look at the numbers of a file.

    Args:
        path: The file.
        structure: Its tensors.
        rank: Of an optimizer's file: the rank that it was saved by.
        deep: Look at all of them.

    Raises:
        DamagedError: What was read is not what was written.
        CheckpointIOError: It cannot be read.
    """
    unowned = dict(_unowned(structure, rank))
    found: dict[str, Numbers] = {}
    with open_file(path) as stored:
        wanted = [e for e in stored.entries if e.dtype in _FLOATS and e.numel and not e.name.endswith(_NO_NUMBERS)]
        room = _OVERLAP * sum(stored.storage_sizes) if deep else _MOST_SAMPLED * FIRST_BYTES
        for entry in wanted:
            first, end = entry.span
            end = end if deep else min(end, first + FIRST_BYTES)
            room -= end - first if deep else FIRST_BYTES
            if room < 0:
                break
            found[entry.name] = _numbers(stored, entry, first, end, unowned.get(entry.name))
    return Look(found, len(wanted), deep)


def not_finite(raw: bytes | bytearray, dtype: str) -> int:
    """How many numbers of a type of floats are NaN or infinite. Raises KeyError if it is none."""
    size, last, before = _FLOATS[dtype]
    marks = raw[size - 1 :: size].translate(last)
    if before is None:
        return marks.count(1)
    others = raw[size - 2 :: size].translate(before)
    return (int.from_bytes(marks, "little") & int.from_bytes(others, "little")).bit_count()


def is_zero(raw: bytes | bytearray, dtype: str) -> bool:
    """Whether all numbers are zero, of whichever sign."""
    top = raw[_FLOATS[dtype].size - 1 :: _FLOATS[dtype].size]
    signs = top.count(0x80)
    return top.count(0) + signs == len(top) and raw.count(0) == len(raw) - signs


def _numbers(stored: Opened, entry: Entry, first: int, end: int, owned: int | None) -> Numbers:
    """Look through a tensor. Of a stacked momentum only the ``owned`` first bytes say whether it is zero."""
    bad, zero = 0, owned != 0 and end == entry.span[1]
    for start in range(first, end, _PIECE):
        raw = bytes(stored.read(entry.storage, start, min(start + _PIECE, end)))
        bad += not_finite(raw, entry.dtype)
        mine = raw if owned is None else raw[: max(0, owned - (start - first))]
        zero = zero and is_zero(mine, entry.dtype)
    return Numbers(bad, zero)


def _unowned(structure: Inspection, rank: int) -> Iterator[tuple[str, int]]:
    """Stacked momenta by name: how many of their bytes stand for parameters.

    Rank r of W has rows ``r*c`` on of K parameters, ``c = ceil(K/W)``; what is beyond the last is zero by design.
    """
    for _, optimizer in find_optimizers(structure.tree):
        for group in optimizer["param_groups"]:
            ids = group.get("params")
            if not isinstance(ids, list) or not ids:
                continue
            held = optimizer["state"].get(ids[0]) if isinstance(ids[0], int | str) else None
            for key, value in held.items() if isinstance(held, dict) else ():
                if type(value) is not TensorRef or key not in ("momentum_buffer", "second_momentum_buffer"):
                    continue
                entry = structure.entries[value.entry]
                if len(entry.shape) == 3 and entry.shape[0]:
                    share = entry.shape[0]
                    owned = max(0, min(share, len(ids) - rank * share))
                    yield entry.name, owned * math.prod(entry.shape[1:]) * entry.itemsize
