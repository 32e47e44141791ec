"""The Triton kernels that decode chunks of the codec planes (SPEC.md, section 10.4), whatever is in them.

``plan_kernel`` looks at what can be known before a value is decoded: one
program for each block checks the head of its chunk, the tables, the rows of the
planes, the symbols, and that the sizes of the tiles end where the next block
begins. It writes down where each tile is and how its planes follow one another.

``tile_kernel`` decodes one tile of 4096 elements in each program. How much a
plane takes depends on the digits before it, so it is compared with the end of
the tile before it is read; what would not fit is not read.

Neither trusts a stored byte: what is wrong sets the flag of the chunk. All
reads are inside the stored bytes and the tables made here, all writes inside
the raw bytes of the chunk.

A value of a tile has a *position* in what is being read: its number among the
values that are stored there, or the size of a tile if it is none of them. Rows
of bits are read eight values at a time. An escape is a digit all of whose bits
are set, so all rows of a level together, byte by byte, are a map of its
escapes: a running sum of how many each byte has, and a product that counts
within all bytes at once, are the positions in the next level. Each value
fetches its own from there.
"""

from __future__ import annotations

from typing import Any, Final

import triton
import triton.language as tl

from fastckpt import constants
from fastckpt.kernels import planes_tables

PLAN_OPTIONS: Final[dict[str, Any]] = {"num_warps": 4, "num_stages": 1}
TILE_OPTIONS: Final[dict[str, Any]] = {"num_warps": 8, "num_stages": 1}
"""What every launch says. A thread has 16 elements of a tile, whose halves, ranks and positions fit into registers."""

_BLOCKS = tl.constexpr(planes_tables.BLOCKS)
_UNITS = tl.constexpr(planes_tables.UNITS)
_PLAN = tl.constexpr(planes_tables.PLAN)
_UNIT = tl.constexpr(planes_tables.UNIT)
_SYMBOLS = tl.constexpr(planes_tables.SYMBOLS)
_PLANES = tl.constexpr(planes_tables.MOST_PLANES)
_KINDS = tl.constexpr(len(planes_tables.KINDS))
_FIELDS_ROW = tl.constexpr(planes_tables.ROW)

_LAYOUT = tl.constexpr(constants.PLANES_LAYOUT)
_TILE = tl.constexpr(constants.PLANES_TILE)
_BYTES = tl.constexpr(constants.PLANES_TILE // 8)
_TILE_LOG2 = tl.constexpr(constants.PLANES_TILE.bit_length() - 1)
_MASKED = tl.constexpr(constants.PLANES_MASKED)
_LEAST_LOG2 = tl.constexpr(constants.PLANES_BLOCK_LOG2)
_MOST_LOG2 = tl.constexpr(constants.PLANES_BLOCK_LOG2_MAX)
_HEAD = tl.constexpr(constants.PLANES_HEAD_SIZE)
_MOST_LEVELS = tl.constexpr(constants.PLANES_MAX_LEVELS)
_MOST_WIDTH = tl.constexpr(constants.PLANES_MAX_WIDTH)
_RAW = tl.constexpr(constants.PLANES_MODE_RAW)
_PACKED = tl.constexpr(constants.PLANES_MODE_PACKED)
_NESTED = tl.constexpr(constants.PLANES_MODE_NESTED)

# Rows of the tile table that no file has.
_ZEROS = tl.constexpr(-1)
_NOTHING = tl.constexpr(-2)


@triton.jit
def _up(size: tl.tensor) -> tl.tensor:
    """The next multiple of 8."""
    return (size + 7) // 8 * 8


@triton.jit
def _words(pointer: tl.tensor, there: tl.tensor) -> tl.tensor:
    """u32 at multiples of 4, as i64; 0 where there is none."""
    return tl.load(pointer.to(tl.pointer_type(tl.uint32)), mask=there, other=0).to(tl.int64)


@triton.jit
def _at(column: tl.tensor, number: tl.tensor) -> tl.tensor:
    """One of eight numbers; 0 for others."""
    return tl.sum(tl.where(tl.arange(0, 8) == number, column, 0), axis=0)


@triton.jit
def _write_symbols(listed: tl.tensor, count: tl.tensor, symbols: tl.tensor) -> tl.tensor:
    """Writes the symbols of a plane by rank: those listed, then all others in rising order. Says whether two are equal.

    listed: *u8, of which ``count`` are read; symbols: *u8 [SYMBOLS]
    """
    value = tl.arange(0, _SYMBOLS)
    times = tl.zeros((_SYMBOLS,), tl.int32)
    for first in range(0, _SYMBOLS, 32):
        rank = first + tl.arange(0, 32)
        symbol = tl.load(listed + rank, mask=rank < count, other=0).to(tl.int32)
        symbol = tl.where(rank < count, symbol, -1)
        times += tl.sum((symbol[None, :] == value[:, None]).to(tl.int32), axis=1)
    tl.store(symbols + value, tl.load(listed + value, mask=value < count, other=0), mask=value < count)
    others = (times == 0).to(tl.int32)
    rank = count + tl.cumsum(others, axis=0) - 1
    tl.store(symbols + rank, value.to(tl.uint8), mask=(others == 1) & (rank < _SYMBOLS))
    return tl.max(times, axis=0) > 1


# Nothing is specialised: one compilation serves any table.
@triton.jit(do_not_specialize=["chunks", "fields", "plans", "units", "symbols", "bad", "most"])
def plan_kernel(chunks, fields, plans, units, symbols, bad, most):
    """Checks a block and writes down how it is decoded; bad[c] = 1 if it, or the head of its chunk, is wrong.

    chunks: *i64 [count, 4], see `decode_planes`; fields: *i32 `planes_tables.KERNEL_WORDS`; plans: *i32
    [count, BLOCKS, PLAN]; units: *i32 [count, UNITS, UNIT]; symbols: *u8 [count, BLOCKS, 8, SYMBOLS]; bad: *i32
    [count]; most: i32, blocks that the largest chunk may have, which are the programs for each chunk
    """
    chunk = (tl.program_id(0) // most).to(tl.int64)
    block = (tl.program_id(0) % most).to(tl.int64)
    stored = tl.load(chunks + 4 * chunk).to(tl.pointer_type(tl.uint8))
    size = tl.load(chunks + 4 * chunk + 1)
    raw = tl.load(chunks + 4 * chunk + 2).to(tl.pointer_type(tl.uint8))
    raw_size = tl.load(chunks + 4 * chunk + 3)
    number = tl.arange(0, 8)

    # The head of the chunk. Nothing behind it is read unless it is right: each mask below has all checks before it.
    right = (size >= _HEAD) & (size % 8 == 0)
    first = _words(stored, right)
    row_length = _words(stored + 8, right)
    phase = _words(stored + 12, right)
    row_count = _words(stored + 16, right)
    log2 = (first >> 8) & 255
    right = right & ((first & 255) == _LAYOUT) & ((first >> 16) == 0) & (log2 >= _LEAST_LOG2) & (log2 <= _MOST_LOG2)
    right = right & (_words(stored + 4, right) == raw_size) & (_words(stored + 20, right) == 0)
    right = right & tl.where(row_length > 0, phase < row_length, (phase == 0) & (row_count == 0))
    log2 = tl.where(right, log2, _LEAST_LOG2)
    blocks = (raw_size + (1 << log2) - 1) >> log2
    rows_at = _HEAD + 4 * blocks
    tables = rows_at + row_count + row_length
    right = right & (tables <= size)
    tables = _up(tables)
    places = _words(stored + _HEAD + 4 * number, number < tl.where(right, blocks, 0))
    first_stored = tl.min(tl.where(places > 0, number, _BLOCKS), axis=0)
    right = right & ((first_stored < _BLOCKS) | (tables == size))
    head_right = right

    # The head of the block.
    place = _at(places, block)
    following = tl.min(tl.where((places > 0) & (number > block), number, _BLOCKS), axis=0)
    end = tl.where(following < _BLOCKS, _at(places, following), size)
    is_stored = right & (place > 0)
    right = is_stored & (place % 8 == 0) & (place >= tables) & (place + 8 <= end) & (end <= size)
    right = right & ((block != first_stored) | (place == tables))
    kind = _words(stored + place, right)
    right = right & (kind < _KINDS) & (_words(stored + place + 4, right) == 0)
    kind = tl.where(right, kind, 0)
    width = tl.load(fields + kind * _FIELDS_ROW).to(tl.int64)
    planes = tl.load(fields + kind * _FIELDS_ROW + 1)
    right = right & (place + 8 + 8 * planes <= end)

    # The rows of its planes.
    there = number < tl.where(right, planes, 0)
    head = _words(stored + place + 8 + 8 * number, there)
    widths = _words(stored + place + 12 + 8 * number, there)
    mode, count, base, last = head & 255, (head >> 8) & 255, (head >> 16) & 255, head >> 24
    wrong = (count < 1) | (count > _MOST_LEVELS) | (base > 1)
    for level in tl.static_range(8):
        digit = (widths >> (4 * level)) & 15
        wrong = wrong | tl.where(level < count, (digit < 1) | (digit > _MOST_WIDTH), digit != 0)
    most = tl.where(mode == _PACKED, _MOST_WIDTH, 0)
    flat_wrong = (mode > _PACKED) | (last != 0) | (widths != 0) | (count > most) | ((mode == _RAW) & (base != 0))
    wrong = there & tl.where(mode == _NESTED, wrong, flat_wrong)
    right = right & (tl.sum(wrong.to(tl.int32), axis=0) == 0)

    # Its symbols and its tiles.
    nested = (there & (mode == _NESTED)).to(tl.int32)
    listed = tl.where(nested == 1, last + 1, 0)
    symbols_at = place + 8 + 8 * planes
    lists = symbols_at + tl.cumsum(listed, axis=0) - listed
    table_at = symbols_at + _up(tl.sum(listed, axis=0))
    start = block << log2
    nbytes = tl.minimum(raw_size - start, 1 << log2)
    elements = nbytes // width
    rest = nbytes - elements * width
    tiles = (elements + (_TILE - 1)) // _TILE
    tiles_at = table_at + _up(2 * tiles)
    right = right & (tiles_at <= end)
    unit = tl.arange(0, _UNITS)
    table = (stored + table_at).to(tl.pointer_type(tl.uint16)) + unit
    row = tl.load(table, mask=unit < tl.where(right, tiles, 0), other=0).to(tl.int32)
    nbytes_of_tile = (row & (_MASKED - 1)) * 8
    tiles_end = tiles_at + tl.sum(nbytes_of_tile, axis=0)
    right = right & (tiles_end + _up(rest) == end)
    first_element = start // width
    last_row = (phase + first_element + elements - 1) // tl.where(row_length > 0, row_length, 1)
    right = right & ((row_length == 0) | (elements == 0) | (last_row < row_count))
    own = chunk * _BLOCKS + block
    for plane in range(_PLANES):
        symbol_count = tl.where(right, _at(listed, plane), 0).to(tl.int32)
        if symbol_count > 0:
            to = symbols + (own * _PLANES + plane) * _SYMBOLS
            right = right & (_write_symbols(stored + _at(lists, plane), symbol_count, to) == 0)

    # What is written down. A block of which anything is wrong leaves nothing to do.
    plan = plans + own * _PLAN
    tl.store(plan, width.to(tl.int32))
    tl.store(plan + 1, planes)
    tl.store(plan + 2, elements.to(tl.int32))
    tl.store(plan + 3, first_element.to(tl.int32))
    tl.store(plan + 4, row_length.to(tl.int32))
    tl.store(plan + 5, phase.to(tl.int32))
    tl.store(plan + 6, rows_at.to(tl.int32))
    tl.store(plan + 7, (rows_at + row_count).to(tl.int32))
    flat = there.to(tl.int32) - nested
    order = tl.where(nested == 1, tl.sum(flat, axis=0) + tl.cumsum(nested, axis=0), tl.cumsum(flat, axis=0)) - 1
    step = plan + 8 + 4 * order
    tl.store(step, (kind * _FIELDS_ROW + 4 + 4 * number).to(tl.int32), mask=there)
    tl.store(step + 1, (mode | (count << 8) | (base << 16) | (number << 24)).to(tl.int32), mask=there)
    tl.store(step + 2, widths.to(tl.int32), mask=there)

    zeros = head_right & (block < blocks) & (place == 0)
    covered = (start + unit * _TILE) < tl.where(zeros, tl.minimum(raw_size, start + (1 << log2)), 0)
    row = tl.where(unit < tl.where(right, tiles, 0), row, tl.where(covered, _ZEROS, _NOTHING))
    own_units = 1 << (log2 - _TILE_LOG2)
    slot = block * own_units + unit
    to = units + (chunk * _UNITS + slot) * _UNIT
    written = (unit < own_units) & (slot < _UNITS)
    tl.store(to, (tiles_at + tl.cumsum(nbytes_of_tile, axis=0) - nbytes_of_tile).to(tl.int32), mask=written)
    tl.store(to + 1, row, mask=written)
    tl.store(to + 2, tl.zeros((_UNITS,), tl.int32) + block.to(tl.int32), mask=written)
    tl.store(to + 3, unit, mask=written)

    byte = tl.load(stored + tiles_end + number, mask=number < tl.where(right, rest, 0), other=0)
    tl.store(raw + start + elements * width + number, byte, mask=number < tl.where(right, rest, 0))
    if (head_right == 0) | (is_stored & (right == 0)):
        tl.store(bad + chunk, 1)


@triton.jit
def _rows(data: tl.tensor, row: tl.tensor, read: tl.tensor, width: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Rows of bits, eight values in a byte: four rows in an i32, up to three in another, and where all bits are set.

    data: *u8, rows of ``row`` bytes, of which ``read`` are read; i32 [TILE / 8] each
    """
    byte = tl.arange(0, _BYTES)
    lower = tl.zeros((_BYTES,), tl.int32)
    upper = tl.zeros((_BYTES,), tl.int32)
    full = tl.zeros((_BYTES,), tl.int32) + 255
    for bit in range(_MOST_WIDTH):
        if bit < width:
            eight = tl.load(data + bit * row + byte, mask=byte < read, other=0).to(tl.int32)
            full &= eight
            lower |= tl.where(bit < 4, eight << (8 * (bit & 3)), 0)
            upper |= tl.where(bit < 4, 0, eight << (8 * (bit & 3)))
    return lower, upper, full


@triton.jit
def _digits(lower: tl.tensor, upper: tl.tensor, position: tl.tensor, count: tl.tensor, width: tl.tensor) -> tl.tensor:
    """The digit of each value that is among the first ``count``, otherwise 0: i32 [TILE]."""
    byte = tl.minimum(position >> 3, _BYTES - 1)
    bits = tl.gather(lower, byte, 0) >> (position & 7)
    digit = (bits & 1) | ((bits >> 7) & 2) | ((bits >> 14) & 4) | ((bits >> 21) & 8)
    if width > 4:
        bits = tl.gather(upper, byte, 0) >> (position & 7)
        digit |= ((bits & 1) | ((bits >> 7) & 2) | ((bits >> 14) & 4)) << 4
    return tl.where(position < count, digit, 0)


@triton.jit
def _ranks(
    stored: tl.tensor,
    at: tl.tensor,
    end: tl.tensor,
    position: tl.tensor,
    count: tl.tensor,
    levels: tl.tensor,
    closed: tl.tensor,
    widths: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """The ranks of a nested plane, i32 [TILE], and where it ends: behind ``end`` if it does not fit."""
    rank = tl.zeros((_TILE,), tl.int32)
    for level in range(_MOST_LEVELS):
        if (level < levels) & (count > 0):
            width = (widths >> (4 * level)) & 15
            row = (count + 7) // 8
            fits = at + row * width <= end
            lower, upper, full = _rows(stored + at, row, tl.where(fits, row, 0), width)
            digit = _digits(lower, upper, position, count, width)
            rank += digit
            at += row * width
            open_ = tl.where(fits & ((closed == 0) | (level < levels - 1)), count, 0)
            # For each byte of escapes: how many come before it, and in its digits of 4 bits how many do within it.
            left = tl.minimum(tl.maximum(open_ - 8 * tl.arange(0, _BYTES), 0), 8)
            full &= (1 << left) - 1
            one = (full | (full << 12)) & 0x000F000F
            one = (one | (one << 6)) & 0x03030303
            one = (one | (one << 3)) & 0x11111111
            within = one * 0x11111111
            escapes = (within >> 28) & 15
            before = tl.cumsum(escapes, axis=0) - escapes
            byte = tl.minimum(position >> 3, _BYTES - 1)
            following = tl.gather(before, byte, 0) + ((tl.gather(within << 4, byte, 0) >> (4 * (position & 7))) & 15)
            escaped = (digit == (1 << width) - 1) & (position < open_)
            position = tl.where(escaped, following, _TILE)
            count = tl.sum(escapes, axis=0)
    read = tl.where(at + count <= end, count, 0)
    rank += tl.load(stored + at + position, mask=position < read, other=0).to(tl.int32)
    return rank & 255, at + count


@triton.jit
def _store(address: tl.tensor, width: tl.tensor, low: tl.tensor, high: tl.tensor, count: tl.tensor):
    """The first ``count`` elements of ``width`` bytes, from their halves."""
    i = tl.arange(0, _TILE)
    if (width == 2) & (address % 2 == 0):
        tl.store(address.to(tl.pointer_type(tl.uint16)) + i, low.to(tl.uint16), mask=i < count)
    elif (width == 4) & (address % 4 == 0):
        tl.store(address.to(tl.pointer_type(tl.int32)) + i, low, mask=i < count)
    else:
        # Bytes, and elements that lie where no element of theirs would.
        to = address.to(tl.pointer_type(tl.uint8)) + i * width
        for byte in range(4):
            tl.store(to + byte, ((low >> (8 * byte)) & 255).to(tl.uint8), mask=i < tl.where(byte < width, count, 0))
            above = i < tl.where(byte + 4 < width, count, 0)
            tl.store(to + 4 + byte, ((high >> (8 * byte)) & 255).to(tl.uint8), mask=above)


@triton.jit(do_not_specialize=["chunks", "fields", "plans", "units", "symbols", "bad", "most"])
def tile_kernel(chunks, fields, plans, units, symbols, bad, most):
    """Decodes what ``plan_kernel`` wrote down; bad[c] = 1 if a tile of chunk c is not of the size that it must have.

    most: i32, tiles that the largest chunk may have, which are the programs for each chunk
    """
    chunk = (tl.program_id(0) // most).to(tl.int64)
    unit = tl.program_id(0) % most
    written = units + (chunk * _UNITS + unit) * _UNIT
    start = tl.load(written)
    row = tl.load(written + 1)
    stored = tl.load(chunks + 4 * chunk).to(tl.pointer_type(tl.uint8))
    raw = tl.load(chunks + 4 * chunk + 2)
    i = tl.arange(0, _TILE)
    if row == _ZEROS:
        offset = unit * _TILE + i
        zero = tl.zeros((_TILE,), tl.uint8)
        tl.store(raw.to(tl.pointer_type(tl.uint8)) + offset, zero, mask=offset < tl.load(chunks + 4 * chunk + 3))
    if row >= 0:
        block = chunk * _BLOCKS + tl.load(written + 2)
        tile = tl.load(written + 3)
        plan = plans + block * _PLAN
        width, planes = tl.load(plan), tl.load(plan + 1)
        first, row_length = tl.load(plan + 3) + tile * _TILE, tl.load(plan + 4)
        n = tl.minimum(tl.load(plan + 2) - tile * _TILE, _TILE)
        at, end = start, start + (row & (_MASKED - 1)) * 8
        own = tl.where(i < n, i, _TILE)
        count = n
        if row >= _MASKED:
            size = tl.where(end > start, (n + 511) // 512 * 8, 0)
            read = tl.where((size > 0) & (at + size <= end), n, 0)
            byte = tl.load(stored + at + (i >> 6), mask=i < read, other=0).to(tl.int32)
            kept = (byte >> ((i >> 3) & 7)) & 1
            own = tl.where(kept == 1, tl.cumsum(kept, axis=0) - 1, _TILE)
            count = tl.sum(kept, axis=0)
            at += size
        low = tl.zeros((_TILE,), tl.int32)
        high = tl.zeros((_TILE,), tl.int32)
        for step in range(_PLANES):
            if step < planes:
                field = fields + tl.load(plan + 8 + 4 * step)
                head = tl.load(plan + 9 + 4 * step)
                mode, bits, base, plane = head & 255, (head >> 8) & 255, (head >> 16) & 255, head >> 24
                if mode == _NESTED:
                    value, at = _ranks(stored, at, end, own, count, bits, base, tl.load(plan + 10 + 4 * step))
                    known = symbols + (block * _PLANES + plane) * _SYMBOLS
                    value = tl.load(known + value, mask=own < count, other=0).to(tl.int32)
                else:
                    size = tl.where(mode == _RAW, count, (count + 7) // 8 * bits)
                    read = tl.where(at + size <= end, count, 0)
                    if mode == _RAW:
                        value = tl.load(stored + at + own, mask=own < read, other=0).to(tl.int32)
                    else:
                        lower, upper, _ = _rows(stored + at, (count + 7) // 8, (read + 7) // 8, bits)
                        value = _digits(lower, upper, own, count, bits) + base
                    at += size
                if (plane == 0) & (row_length > 0):
                    place = tl.load(plan + 5) + first + i
                    rows, columns = stored + tl.load(plan + 6), stored + tl.load(plan + 7)
                    value += tl.load(rows + place // row_length, mask=own < count, other=0).to(tl.int32)
                    value += tl.load(columns + place % row_length, mask=own < count, other=0).to(tl.int32)
                shift, lower, upper = tl.load(field), tl.load(field + 1), tl.load(field + 2)
                part = (value & ((1 << lower) - 1)) << (shift & 31)
                part |= ((value >> lower) & ((1 << tl.load(field + 3)) - 1)) << (upper & 31)
                if shift < 32:
                    low |= part
                else:
                    high |= part
        if (at + 7) // 8 * 8 == end:
            # Elements of groups that are not stored are zero, whatever the planes say.
            low, high = tl.where(own < count, low, 0), tl.where(own < count, high, 0)
            _store(raw + (tl.load(plan + 3).to(tl.int64) + tile * _TILE) * width, width, low, high, n)
        else:
            tl.store(bad + chunk, 1)
