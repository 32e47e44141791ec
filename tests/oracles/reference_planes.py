"""A second decoder of the codec planes, written from SPEC.md, section 10.4, alone: NumPy, and nothing of fastckpt."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.uint8]

# For each kind: bytes of an element, and for each plane the bits of its values, the highest first.
KINDS: list[tuple[int, list[list[int]]]] = [
    (1, [[7, 0]]),
    (2, [[15, 8], [7, 0]]),
    (4, [[31, 24], [23, 16], [15, 8], [7, 0]]),
    (8, [[63, 56], [55, 48], [47, 40], [39, 32], [31, 24], [23, 16], [15, 8], [7, 0]]),
    (2, [[14, 10], [15, 15, 9, 8], [7, 0]]),
    (2, [[14, 7], [15, 15, 6, 0]]),
    (4, [[30, 23], [31, 31, 22, 16], [15, 8], [7, 0]]),
    (8, [[59, 52], [63, 60, 51, 48], [47, 40], [39, 32], [31, 24], [23, 16], [15, 8], [7, 0]]),
    (1, [[6, 3], [7, 7, 2, 0]]),
    (1, [[6, 2], [7, 7, 1, 0]]),
    (1, [[7, 4], [3, 0]]),
]
TILE = 4096


class Bad(Exception):
    """These are not the stored bytes of a chunk."""


def need(condition: bool, what: str) -> None:
    if not condition:
        raise Bad(what)


class Plane(NamedTuple):
    mode: int
    count: int
    base: int
    widths: list[int]
    symbols: list[int]


def up(size: int) -> int:
    return (size + 7) // 8 * 8


class Bytes:
    """Takes bytes off the front, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        need(size <= len(self.data) - self.at, "too few bytes")
        self.at += size
        return self.data[self.at - size : self.at]

    def bits(self, n: int, width: int) -> Values:
        """n values of so many bits each."""
        row = (n + 7) // 8
        rows = np.frombuffer(self.take(row * width), np.uint8).reshape(width, row)
        values = np.zeros(n, np.uint8)
        for bit in range(width):
            values |= np.unpackbits(rows[bit], bitorder="little")[:n] << np.uint8(bit)
        return values


def decode(stored: bytes, raw_size: int) -> bytes:
    """The raw bytes of a chunk. Raises `Bad`."""
    need(len(stored) % 8 == 0, "no multiple of 8")
    source = Bytes(stored)
    layout, log2, reserved, size, row_length, phase, row_count, more = struct.unpack("<BBHIIIII", source.take(24))
    need(layout == 1 and 17 <= log2 <= 20 and reserved == 0 and more == 0 and size == raw_size, "head")
    need(phase < row_length if row_length else phase == 0 and row_count == 0, "shifts")
    blocks = -(-raw_size // (1 << log2))
    places = struct.unpack(f"<{blocks}I", source.take(4 * blocks))
    rows = np.frombuffer(source.take(row_count), np.uint8)
    columns = np.frombuffer(source.take(row_length), np.uint8)
    source.take(up(source.at) - source.at)
    out = b""
    for place in places:
        raw = min(1 << log2, raw_size - len(out))
        if place == 0:
            out += bytes(raw)
            continue
        need(place == source.at, "a block at another place")
        out += decode_block(source, raw, len(out), (rows, columns, phase))
    need(source.at == len(stored), "bytes behind the last block")
    return out


def decode_block(source: Bytes, raw: int, start: int, shifts: tuple[Values, Values, int]) -> bytes:
    kind, *reserved = source.take(8)
    need(kind < len(KINDS) and not any(reserved), "head of a block")
    width, fields = KINDS[kind]
    heads = [struct.unpack("<BBBBI", source.take(8)) for _ in fields]
    listed = b""
    planes = []
    for mode, count, base, last, widths in heads:
        need(mode <= 2, "mode")
        if mode == 2:
            need(1 <= count <= 6 and base <= 1, "levels")
            levels = [widths >> 4 * level & 15 for level in range(8)]
            need(all(1 <= w <= 7 for w in levels[:count]) and not any(levels[count:]), "widths")
            planes.append(Plane(2, count, base, levels[:count], [last + 1]))
        else:
            need(last == 0 and widths == 0 and count <= (7 if mode else 0) and (mode == 1 or base == 0), "row")
            planes.append(Plane(mode, count, base, [], []))
    for number, plane in enumerate(planes):
        if plane.mode == 2:
            table = source.take(plane.symbols[0])
            need(len(set(table)) == len(table), "symbols")
            listed += table
            planes[number] = plane._replace(symbols=[*table, *(s for s in range(256) if s not in table)])
    source.take(up(len(listed)) - len(listed))
    elements = raw // width
    tiles = -(-elements // TILE)
    rows, columns, phase = shifts
    first = start // width
    if len(columns) and elements:
        need((phase + first + elements - 1) // len(columns) < len(rows), "rows")
    table = source.take(up(2 * tiles))
    out = b""
    for tile, (row,) in zip(range(tiles), struct.iter_unpack("<H", table), strict=False):
        n = min(TILE, elements - tile * TILE)
        out += decode_tile(
            Bytes(source.take(8 * (row & 0x7FFF))), bool(row >> 15), n, planes, kind, first + tile * TILE, shifts
        )
    rest = raw % width
    out += source.take(rest)
    source.take(up(rest) - rest)
    return out


def decode_tile(
    tile: Bytes, masked: bool, n: int, planes: list[Plane], kind: int, first: int, shifts: tuple[Values, Values, int]
) -> bytes:
    width, fields = KINDS[kind]
    if masked and not tile.data:
        return bytes(n * width)
    kept = np.ones(n, bool)
    if masked:
        groups = np.unpackbits(np.frombuffer(tile.take(8 * -(-n // 512)), np.uint8), bitorder="little")
        kept = np.repeat(groups, 8)[:n].astype(bool)
    m = int(kept.sum())
    values: dict[int, Values] = {}
    for number, plane in sorted(enumerate(planes), key=lambda pair: (pair[1].mode == 2, pair[0])):
        if plane.mode == 0:
            values[number] = np.frombuffer(tile.take(m), np.uint8)
        elif plane.mode == 1:
            values[number] = tile.bits(m, plane.count) + np.uint8(plane.base)
        else:
            values[number] = nested(tile, m, plane)
    need(up(tile.at) == len(tile.data), "size of a tile")
    rows, columns, phase = shifts
    if len(columns):
        at = phase + first + np.flatnonzero(kept)
        values[0] = values[0] + rows[at // len(columns)] + columns[at % len(columns)]
    words = np.zeros(n, np.uint64)
    for number, field in enumerate(fields):
        left = values[number].astype(np.uint64)
        for high, low in reversed(list(zip(field[::2], field[1::2], strict=True))):
            size = np.uint64(high - low + 1)
            words[kept] |= (left & ((np.uint64(1) << size) - np.uint64(1))) << np.uint64(low)
            left >>= size
    return words.astype(f"<u{width}").tobytes()


def nested(tile: Bytes, n: int, plane: Plane) -> Values:
    ranks = np.zeros(n, np.uint8)
    open_ = np.arange(n)  # Those that the next level has a digit for.
    for level, width in enumerate(plane.widths):
        digits = tile.bits(len(open_), width)
        ranks[open_] += digits
        ends = plane.base == 1 and level == plane.count - 1
        open_ = open_[:0] if ends else open_[digits == (1 << width) - 1]
    ranks[open_] += np.frombuffer(tile.take(len(open_)), np.uint8)
    return np.array(plane.symbols, np.uint8)[ranks]
