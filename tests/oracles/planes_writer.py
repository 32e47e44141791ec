"""Writes chunks of the codec planes by chance, from SPEC.md, section 10.4, alone: each choice that a writer has.

Nothing here tries to be small. What the writer of fastckpt never chooses, a reader must read all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from reference_planes import KINDS, TILE, up

Values = npt.NDArray[np.uint8]
RAW, PACKED, NESTED = 0, 1, 2


def bits(values: Values, width: int) -> bytes:
    return b"".join(np.packbits((values >> bit) & 1, bitorder="little").tobytes() for bit in range(width))


def split(words: npt.NDArray[np.uint64], field: Sequence[int]) -> Values:
    """The values of a plane."""
    value = np.zeros(len(words), np.uint64)
    for high, low in zip(field[::2], field[1::2], strict=True):
        size = np.uint64(high - low + 1)
        value = value << size | (words >> np.uint64(low)) & ((np.uint64(1) << size) - np.uint64(1))
    return value.astype(np.uint8)


class Plane:
    """How one plane of a block is stored, chosen among what can hold these values."""

    def __init__(self, rng: np.random.Generator, values: Values, mode: int | None) -> None:
        self.base = int(values.min(initial=255)) - int(rng.integers(0, 3)) & 255
        spread = int((values - np.uint8(self.base)).max(initial=0))
        modes = [RAW, NESTED, NESTED] + ([PACKED] * 2 if spread < 128 else [])
        self.mode = int(rng.choice(modes)) if mode is None or (mode == PACKED and spread >= 128) else mode
        self.listed = b""
        self.widths: list[int] = []
        if self.mode == PACKED:
            least = spread.bit_length()
            self.count = int(rng.integers(least, 8)) if rng.random() < 0.5 else least
            self.row = struct.pack("<BBBBI", PACKED, self.count, self.base, 0, 0)
        elif self.mode == RAW:
            self.row = struct.pack("<BBBBI", RAW, 0, 0, 0, 0)
        else:
            self._nest(rng, values)

    def _nest(self, rng: np.random.Generator, values: Values) -> None:
        frequent = np.argsort(-np.bincount(values, minlength=256), kind="stable").astype(np.uint8)
        order = frequent if rng.random() < 0.7 else rng.permutation(256).astype(np.uint8)
        listed = order[: int(rng.choice([1, 2, 7, 16, 60, 256]))]
        symbols = [*listed.tolist(), *(s for s in range(256) if s not in set(listed.tolist()))]
        self.ranks = np.argsort(np.array(symbols)).astype(np.uint8)
        self.widths = rng.integers(1, rng.choice([3, 8]), int(rng.integers(1, 7))).tolist()
        most = int(self.ranks[values].max(initial=0))
        self.closed = most <= sum((1 << w) - 1 for w in self.widths) and rng.random() < 0.7
        self.listed = listed.tobytes()
        packed = sum(w << 4 * level for level, w in enumerate(self.widths))
        self.row = struct.pack("<BBBBI", NESTED, len(self.widths), self.closed, len(listed) - 1, packed)

    def store(self, values: Values) -> bytes:
        if self.mode == RAW:
            return values.tobytes()
        if self.mode == PACKED:
            return bits(values - np.uint8(self.base), self.count)
        stored = b""
        left = self.ranks[values].astype(int)
        for level, width in enumerate(self.widths):
            most = (1 << width) - 1
            digits = np.minimum(left, most)
            stored += bits(digits.astype(np.uint8), width)
            if self.closed and level == len(self.widths) - 1:
                return stored
            left = left[digits == most] - most
        return stored + left.astype(np.uint8).tobytes()


def padded(data: bytes) -> bytes:
    return data + bytes(up(len(data)) - len(data))


def write(
    raw: bytes,
    kinds: Sequence[int],
    seed: int = 0,
    *,
    log2: int = 17,
    row_length: int = 0,
    phase: int = 0,
    modes: Sequence[int] = (),
) -> bytes:
    """Stored bytes of a chunk; ``kinds`` is used over and over for its blocks, and so are ``modes`` for the planes."""
    rng = np.random.default_rng(seed)
    size = 1 << log2
    starts = range(0, len(raw), size)
    all_kinds = [kinds[number % len(kinds)] for number in range(len(starts))]
    shifts: Any = None
    rows = columns = b""
    if row_length:
        most = max(
            (phase + (start + size) // KINDS[k][0]) // row_length for start, k in zip(starts, all_kinds, strict=True)
        )
        rows, columns = rng.bytes(most + 1), rng.bytes(row_length)
        shifts = np.frombuffer(rows, np.uint8), np.frombuffer(columns, np.uint8), phase
    head = struct.pack("<BBHIIIII", 1, log2, 0, len(raw), row_length, phase, len(rows), 0)
    at = up(len(head) + 4 * len(starts) + len(rows) + len(columns))
    places, blocks = [], b""
    for start, kind in zip(starts, all_kinds, strict=True):
        part = raw[start : start + size]
        if not any(part) and rng.random() < 0.7:
            places.append(0)
            continue
        places.append(at + len(blocks))
        blocks += block(rng, part, kind, start // KINDS[kind][0], shifts, modes)
    return padded(head + struct.pack(f"<{len(places)}I", *places) + rows + columns) + blocks


def block(rng: np.random.Generator, raw: bytes, kind: int, first: int, shifts: Any, modes: Sequence[int]) -> bytes:
    width, fields = KINDS[kind]
    count = len(raw) // width
    words = np.frombuffer(raw[: count * width], f"<u{width}").astype(np.uint64)
    lanes = [split(words, field) for field in fields]
    if shifts is not None:
        rows, columns, phase = shifts
        at = phase + first + np.arange(count)
        lanes[0] = lanes[0] - rows[at // len(columns)] - columns[at % len(columns)]
    planes = [Plane(rng, lane, modes[number % len(modes)] if modes else None) for number, lane in enumerate(lanes)]
    table, tiles = [], b""
    masks = rng.random() < 0.7
    for start in range(0, count, TILE):
        here = words[start : start + TILE]
        tile, masked = tile_of(rng, here, [lane[start : start + TILE] for lane in lanes], planes, masks)
        table.append(len(tile) // 8 | masked << 15)
        tiles += tile
    head = struct.pack("<B7x", kind) + b"".join(plane.row for plane in planes)
    head += padded(b"".join(plane.listed for plane in planes)) + padded(struct.pack(f"<{len(table)}H", *table))
    return head + tiles + padded(raw[count * width :])


def tile_of(
    rng: np.random.Generator, words: npt.NDArray[np.uint64], lanes: list[Values], planes: list[Plane], masks: bool
) -> tuple[bytes, bool]:
    n = len(words)
    groups = np.add.reduceat(words != 0, np.arange(0, n, 8)) != 0
    masked = bool(masks and (not groups.all() or rng.random() < 0.1))
    mask = b""
    if masked:
        if not groups.any() and rng.random() < 0.5:
            return b"", True
        groups |= rng.random(len(groups)) < 0.1
        mask = np.packbits(groups, bitorder="little").tobytes()
        mask += bytes(-(-n // 512) * 8 - len(mask))
        kept = np.repeat(groups, 8)[:n]
        lanes = [lane[kept] for lane in lanes]
    stored = [plane.store(lane) for plane, lane in zip(planes, lanes, strict=True)]
    flat = [data for data, plane in zip(stored, planes, strict=True) if plane.mode != NESTED]
    nested = [data for data, plane in zip(stored, planes, strict=True) if plane.mode == NESTED]
    return padded(mask + b"".join(flat + nested)), masked
