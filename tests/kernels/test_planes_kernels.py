"""The kernels that decode planes, in Triton's interpreter: bit for bit what two other decoders give, damage included.

The interpreter takes some 0.1 s for a tile, so chunks are small, and many are decoded at once.
"""

from __future__ import annotations

import struct

import numpy as np
import planes_writer
import pytest
import reference_planes
import torch
from kernel_jobs import Call
from planes_jobs import Chunk, decode
from triton_versions import can_decode_planes

from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE
from fastckpt.kernels import planes_tables
from fastckpt.kernels.decode_planes import decode_planes, room_for

pytestmark = can_decode_planes

KINDS = range(len(reference_planes.KINDS))
WIDTH = [width for width, _ in reference_planes.KINDS]
SIZE = 1 << 17
"""Raw bytes of a block."""


def numbers(kind: int, count: int, seed: int = 0, zeros: float = 0.0) -> bytes:
    """Elements that look like weights; a part of the groups of eight, and all behind some place, are zero."""
    rng = np.random.default_rng([kind, count, seed])
    values = rng.standard_normal(count) * 0.02
    width = WIDTH[kind]
    words = values.astype("<f8").view("<u8") if width == 8 else values.astype("<f4").view("<u4")
    words = (words >> (4 - width) * 8 if width < 4 else words).astype(f"<u{width}")
    words[np.repeat(rng.random(-(-count // 8)) < zeros, 8)[:count]] = 0
    words[int(count * (1 - zeros)) :] = 0
    return words.tobytes()


def outcome(chunk: Chunk) -> bytes | None:
    try:
        return reference_planes.decode(*chunk)
    except reference_planes.Bad:
        return None


def check(interpreted: Call, chunks: list[Chunk], shift: int = 0) -> list[bytes | None]:
    """Decoded by the kernels as by the two others."""
    expected = [outcome(chunk) for chunk in chunks]
    for (stored, size), raw in zip(chunks, expected, strict=True):
        memory = bytearray(size)
        if raw is None:
            with pytest.raises(ValueError, match=r"."):
                _core.planes_decode(stored, memory)
        else:
            _core.planes_decode(stored, memory)
            assert memory == raw
    found = interpreted(decode, chunks, shift)
    assert [raw is None for raw in found] == [raw is None for raw in expected]
    assert found == expected
    return found


def test_the_table_of_kinds() -> None:
    for (width, fields), (expected, planes) in zip(planes_tables.KINDS, reference_planes.KINDS, strict=True):
        assert width == expected
        for field, parts in zip(fields, planes, strict=True):
            bits = [bit for high, low in zip(parts[::2], parts[1::2], strict=True) for bit in range(high, low - 1, -1)]
            ours = [*range(field.low, field.low + field.low_bits), *range(field.high, field.high + field.high_bits)]
            assert ours == bits[::-1]
            assert {bit // 32 for bit in bits} == {field.low // 32}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_of_a_writer(interpreted: Call, kind: int) -> None:
    """Modes, widths, symbols, masks and shifts by chance; a tile and a bit, a rest that is no element."""
    chunks = []
    for seed, (count, rest, row_length, phase) in enumerate([(4103, 0, 0, 0), (1500, 1, 37, 5), (77, 7, 1000, 999)]):
        raw = numbers(kind, count, seed, zeros=0.3 * (seed != 2)) + b"rest..."[: rest % WIDTH[kind]]
        chunks.append((planes_writer.write(raw, [kind], seed, row_length=row_length, phase=phase), len(raw)))
    assert None not in check(interpreted, chunks, shift=0 if kind % 2 else 1)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_many_choices_of_a_writer(interpreted: Call, kind: int, seed: int) -> None:
    rng = np.random.default_rng([kind, seed])
    chunks = []
    for number in range(8):
        count = int(rng.choice([0, 1, 7, 8, 9, 63, 64, 65, 511, 4095, 4096, 4097, 9000]))
        raw = numbers(kind, count, seed + number, zeros=float(rng.choice([0, 0.2, 0.9])))
        raw += rng.bytes(WIDTH[kind] - 1 if rng.random() < 0.5 or not count else 0) or b"" if raw else b"x"
        row_length = int(rng.choice([0, 0, 1, 13, 300, 5000]))
        phase = int(rng.integers(0, row_length)) if row_length else 0
        stored = planes_writer.write(raw, [kind], seed, row_length=row_length, phase=phase, log2=17 + number % 4)
        chunks.append((stored, len(raw)))
    assert None not in check(interpreted, chunks, shift=seed % 8)


@pytest.mark.parametrize("mode", [planes_writer.RAW, planes_writer.PACKED, planes_writer.NESTED])
def test_each_mode_alone(interpreted: Call, mode: int) -> None:
    chunks = []
    for kind in (2, 5, 10):
        raw = bytes(np.frombuffer(numbers(kind, 600), np.uint8) & (0x77 if mode == planes_writer.PACKED else 0xFF))
        chunks.append((planes_writer.write(raw, [kind], kind, modes=[mode]), len(raw)))
    assert None not in check(interpreted, chunks)


@pytest.mark.parametrize("shift", [2, 4])
def test_raw_bytes_at_any_place(interpreted: Call, shift: int) -> None:
    chunks = []
    for kind in (1, 6, 7):
        raw = numbers(kind, 100)
        chunks.append((planes_writer.write(raw, [kind], 3), len(raw)))
    assert None not in check(interpreted, chunks, shift)


def blocks_of(kinds: list[int], zero: set[int]) -> bytes:
    """A block of each kind; all but a few of its elements are zero, and those of some are too."""
    raw = b""
    for number, kind in enumerate(kinds):
        some = b"" if number in zero else numbers(kind, 300, number)
        raw += bytes(SIZE // 2) * (number % 2) + some
        raw += bytes((number + 1) * SIZE - len(raw))
    return raw


@pytest.mark.thorough
def test_several_blocks(interpreted: Call) -> None:
    """Of different kinds, with blocks of zeros between them and at both ends; the last is cut inside an element."""
    kinds = [5, 7, 3, 6, 7]
    raw = blocks_of(kinds, {0, 2})[: 4 * SIZE + 90_003]
    chunks = [(planes_writer.write(raw, kinds, 5, row_length=701, phase=700), len(raw))]
    raw = bytes(2 * SIZE) + numbers(6, 500)[:-1]
    chunks += [(planes_writer.write(raw, [6], 6, log2=log2), len(raw)) for log2 in (17, 18)]
    raw = bytes(SIZE + 5)
    chunks += [(struct.pack("<BBHIIIII2I", 1, 17, 0, len(raw), 0, 0, 0, 0, 0, 0), len(raw))]
    assert None not in check(interpreted, chunks)


def test_a_block_without_an_element_needs_no_rows(interpreted: Call) -> None:
    """A rest is not shifted: where nothing but zeros comes before it, a chunk may have columns and not one row."""
    raw = bytes(SIZE) + b"abc"
    head = struct.pack("<BBHIIIII2I5x", 1, 17, 0, len(raw), 5, 0, 0, 0, 0, 40)
    stored = head + bytes(3) + struct.pack("<B7x", 7) + bytes(8 * 8) + b"abc" + bytes(5)
    assert check(interpreted, [(stored, len(raw))]) == [raw]


@pytest.mark.slow
def test_whole_chunks(interpreted: Call) -> None:
    raw = blocks_of([5, 6, 7, 8, 9, 10, 0, 3], {3})
    assert len(raw) == CHUNK_SIZE
    chunks = [(planes_writer.write(raw, [5, 6, 7, 8], log2=log2), len(raw)) for log2 in (17, 20)]
    assert None not in check(interpreted, chunks)


def test_what_our_writer_writes(interpreted: Call) -> None:
    chunks = []
    for kind, row_length in ((5, 0), (6, 64), (4, 0)):
        raw = numbers(kind, 5000, zeros=0.3)
        stored = _core.planes_encode(raw, bytes([kind]), row_length=row_length)
        assert stored is not None
        chunks.append((stored, len(raw)))
    assert None not in check(interpreted, chunks)


def damaged(stored: bytes, rng: np.random.Generator, within: int) -> bytes:
    """Stored bytes that are changed, cut or longer, most often where heads and tables are."""
    changed = bytearray(stored)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(0, min(len(changed), within) if rng.random() < 0.7 else len(changed)))
        match int(rng.integers(0, 5)):
            case 0:
                changed[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                changed[at] = int(rng.choice([0, 1, 2, 127, 128, 255]))
            case 2:
                del changed[at : at + int(rng.choice([1, 8, 64]))]
            case 3:
                changed[at:at] = bytes(int(rng.choice([1, 8, 64])))
            case _:
                changed[at & ~3 : at & ~3] = rng.bytes(4)
                del changed[(at & ~3) + 4 : (at & ~3) + 8]
        if not changed:
            break
    return bytes(changed)


def mutants(kind: int, count: int, times: int, seed: int = 0) -> list[Chunk]:
    rng = np.random.default_rng([kind, seed])
    chunks = []
    for number in range(times):
        raw = numbers(kind, count, zeros=0.3 * (number % 2)) + bytes(3)
        row_length = [0, 29][number // 2 % 2]
        stored = planes_writer.write(raw, [kind], seed + number % 7, row_length=row_length, phase=row_length // 2)
        chunks.append((damaged(stored, rng, 400), len(raw)))
    return chunks


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", [3, 5, 10])
def test_damaged_chunks(interpreted: Call, kind: int) -> None:
    """Each is bad for all decoders, or for none."""
    found = check(interpreted, mutants(kind, 50, 15))
    assert 0 < found.count(None) < len(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_chunks(interpreted: Call, kind: int) -> None:
    check(interpreted, mutants(kind, 50, 25, 1) + mutants(kind, 4200, 6, 2))


def heads() -> list[Chunk]:
    """Chunks of one block with one number of a head or a table that must not be so."""
    raw = numbers(6, 300, zeros=0.2)
    stored = planes_writer.write(raw, [6], 1, row_length=50, phase=49, modes=[planes_writer.NESTED, planes_writer.RAW])
    block = struct.unpack_from("<I", stored, 24)[0]
    changes = [(0, "B", 0), (0, "B", 2), (1, "B", 16), (1, "B", 21), (1, "B", 255), (2, "H", 1), (3, "B", 1)]
    changes += [(4, "I", n) for n in (0, len(raw) - 1, len(raw) + 1, 2**32 - 1)]
    changes += [(8, "I", n) for n in (0, 1, 49, 2**31, 2**32 - 1)] + [(12, "I", n) for n in (50, 2**32 - 1)]
    changes += [(16, "I", n) for n in (0, 6, 2**31, 2**32 - 1)] + [(20, "I", 1)]
    changes += [(24, "I", n) for n in (block - 8, block + 8, 1, 4, 2**31, 2**32 - 8, 2**32 - 1, len(stored))]
    changes += [(block, "B", n) for n in (5, 11, 255)] + [(block + 1, "B", 1), (block + 4, "I", 1)]
    row = block + 8
    changes += [(row, "B", n) for n in (0, 1, 3, 255)] + [(row + 1, "B", n) for n in (0, 7, 255)]
    changes += [(row + 2, "B", 2), (row + 3, "B", 255), (row + 4, "I", 0), (row + 4, "I", 2**32 - 1)]
    changes += [(row + 8 + n, "B", 1) for n in (1, 2, 3, 4)]
    symbols = block + 8 + 4 * 8
    table = symbols + (stored[row + 3] + 1 + stored[row + 16 + 3] + 1 + 7) // 8 * 8
    changes += [(table, "H", n) for n in (0, 1, 0x7FFF, 0x8000, 0xFFFF)]
    chunks = []
    for at, form, number in changes:
        changed = bytearray(stored)
        struct.pack_into("<" + form, changed, at, number)
        if changed != stored:
            chunks.append((bytes(changed), len(raw)))
    twice = bytearray(stored)
    twice[symbols + 1 : symbols + 2] = twice[symbols : symbols + 1]
    sizes = [(stored[:size], len(raw)) for size in (0, 1, 8, 23, 24, 27, 28, 32, block, block + 8, len(stored) - 8)]
    return [*chunks, (bytes(twice), len(raw)), *sizes, (stored + bytes(8), len(raw)), (stored + b"1", len(raw))]


@pytest.mark.thorough
def test_each_check_of_heads_and_tables(interpreted: Call) -> None:
    """Numbers that would make a reader go far beyond what is there are among them."""
    found = check(interpreted, heads())
    assert found.count(None) > 0.9 * len(found)


def test_refuses_what_is_no_table() -> None:
    """Before anything is launched, in this process too, where nothing is interpreted."""
    chunks, bad = torch.zeros((2, 4), dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
    room = torch.zeros(room_for(2), dtype=torch.uint8)
    for table, flags, memory in (
        (chunks.int(), bad, room),
        (chunks[:, :3], bad, room),
        (torch.zeros((4, 2), dtype=torch.int64).T, bad, room),
        (chunks, bad[:1], room),
        (chunks, bad.long(), room),
        (chunks, bad, room[:-1]),
        (chunks, bad, room.int()),
        (chunks.to("meta"), bad, room),
    ):
        with pytest.raises(ValueError, match="chunks"):
            decode_planes(table, flags, memory)
    decode_planes(chunks[:0], bad[:0], room[:0])
