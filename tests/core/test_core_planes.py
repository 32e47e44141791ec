"""The codec planes of the native core: every bit comes back, on every instruction set, and damage is an error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference_planes
from hypothesis import given
from hypothesis import strategies as st

from fastckpt import _core
from fastckpt.codec.numbers import KINDS
from fastckpt.constants import (
    CHUNK_SIZE,
    PLANES_KIND_BFLOAT16,
    PLANES_KIND_BYTES,
    PLANES_KIND_FLOAT16,
    PLANES_KIND_FLOAT32,
    PLANES_KIND_FLOAT64,
    PLANES_KIND_NIBBLES,
    PLANES_KIND_QUAD_WORDS,
)

ALL_KINDS = sorted(set(KINDS.values()))
WIDTH = {kind: width for kind, (width, _) in enumerate(reference_planes.KINDS)}
BLOCK = 128 * 1024


def encode(raw: bytes, kind: int, row_length: int = 0, phase: int = 0) -> bytes | None:
    kinds = bytes([kind]) * -(-len(raw) // BLOCK)
    return _core.planes_encode(raw, kinds, row_length=row_length, phase=phase)


def decode(stored: bytes, size: int) -> bytes:
    raw = bytearray(size)
    _core.planes_decode(stored, raw)
    return bytes(raw)


def floats(size: int, kind: int, seed: int = 0) -> bytes:
    """Bytes that look like weights of this kind."""
    rng = np.random.default_rng(seed)
    count = size // WIDTH[kind] + 1
    values = rng.standard_normal(count) * 0.02 * np.exp(rng.standard_normal(count))
    if kind == PLANES_KIND_BFLOAT16:
        raw = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    elif kind == PLANES_KIND_FLOAT16:
        raw = values.astype("<f2").tobytes()
    elif kind == PLANES_KIND_FLOAT32:
        raw = values.astype("<f4").tobytes()
    elif kind == PLANES_KIND_FLOAT64:
        raw = values.astype("<f8").tobytes()
    else:
        raw = np.abs(values * 1000).astype(f"<u{WIDTH[kind]}").tobytes()
    return raw[:size]


def levels(call: Callable[[], object]) -> list[object]:
    """What each instruction set makes of it: a result or the text of an error."""
    found: list[object] = []
    before = _core.simd_level()
    try:
        for level in _core.simd_levels():
            _core.set_simd_level(level)
            try:
                found.append(call())
            except ValueError as error:
                found.append(str(error))
    finally:
        _core.set_simd_level(before)
    return found


def check(raw: bytes, kind: int, row_length: int = 0, phase: int = 0) -> bytes | None:
    """One encoding on all levels, decoded by all of them and by the reference."""
    encoded = levels(lambda: encode(raw, kind, row_length, phase))
    assert all(other == encoded[0] for other in encoded)
    stored = encoded[0]
    assert stored is None or isinstance(stored, bytes)
    if stored is not None:
        assert len(stored) < len(raw)
        assert all(decoded == raw for decoded in levels(lambda: decode(stored, len(raw))))
        assert reference_planes.decode(stored, len(raw)) == raw
    return stored


SIZES = [0, 1, 8, 63, 64, 513, 4095, 8192, 32769, 65535, 131073, 200_003]


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back(kind: int, size: int) -> None:
    check(floats(size, kind), kind)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_whole_chunks_come_back_smaller(kind: int) -> None:
    stored = check(floats(CHUNK_SIZE, kind), kind)
    assert stored is not None


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_random_bytes_are_not_made_larger(kind: int) -> None:
    raw = np.random.default_rng(1).integers(0, 256, 300_000, np.uint8).tobytes()
    assert check(raw, kind) is None


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("fill", [0, 1, 0x3F, 0xFF])
def test_constant_bytes_take_next_to_nothing(kind: int, fill: int) -> None:
    stored = check(bytes([fill]) * (CHUNK_SIZE - 3), kind)
    assert stored is not None
    assert len(stored) < 2048
    if fill == 0:
        assert len(stored) == 32


def sparse(kind: int, rows: int, row_length: int, kept: float) -> bytes:
    width = WIDTH[kind]
    rng = np.random.default_rng(2)
    raw = np.frombuffer(floats(rows * row_length * width, kind), np.uint8).reshape(rows, row_length * width).copy()
    raw[rng.random(rows) >= kept] = 0
    return raw.tobytes()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(("row_length", "kept"), [(768, 0.01), (768, 0.3), (100, 0.5), (13, 0.5), (3, 0.9)])
def test_rows_of_zeros(kind: int, row_length: int, kept: float) -> None:
    rows = 500_000 // (row_length * WIDTH[kind])
    check(sparse(kind, rows, row_length, kept), kind)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("row_length", "phase"), [(1, 0), (7, 3), (64, 63), (1000, 999), (4097, 1), (300_000, 299_999)]
)
def test_any_row_length_comes_back(kind: int, row_length: int, phase: int) -> None:
    check(floats(300_001, kind), kind, row_length, phase)


def moments(rows: int, columns: int, kind: int) -> bytes:
    """As second moments: rows and columns have magnitudes of their own, a tenth of the rows is zero."""
    rng = np.random.default_rng(4)
    scale = np.exp(3 * rng.standard_normal((rows, 1)) + 3 * rng.standard_normal((1, columns)))
    values = scale * np.exp(rng.standard_normal((rows, columns))) * 1e-12
    values[rng.random(rows) < 0.1] = 0
    if kind == PLANES_KIND_BFLOAT16:
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype(f"<f{WIDTH[kind]}").tobytes()


@pytest.mark.parametrize("kind", [PLANES_KIND_BFLOAT16, PLANES_KIND_FLOAT32, PLANES_KIND_FLOAT64])
@pytest.mark.parametrize(("columns", "start"), [(256, 0), (100, 0), (100, 37), (511, 510)])
def test_rows_and_columns_of_their_own_magnitude(kind: int, columns: int, start: int) -> None:
    raw = moments(100_000 // columns, columns, kind)[start * WIDTH[kind] :]
    plain, shifted = check(raw, kind), check(raw, kind, columns, start)
    assert plain is not None
    assert shifted is not None
    # A bit and a half of each exponent.
    assert len(plain) - len(shifted) > 90_000 * 1.5 / 8


def test_shifts_need_rows() -> None:
    raw = moments(400, 256, PLANES_KIND_FLOAT32)
    plain = check(raw, PLANES_KIND_FLOAT32)
    for row_length in (1, 15, 60_000, 102_400, 1 << 31):
        assert check(raw, PLANES_KIND_FLOAT32, row_length) == plain


def test_blocks_of_different_kinds() -> None:
    kinds = bytes([PLANES_KIND_BFLOAT16, PLANES_KIND_FLOAT32, PLANES_KIND_QUAD_WORDS, PLANES_KIND_NIBBLES])
    raw = b"".join(floats(BLOCK, kind) for kind in kinds[:3]) + floats(1000, kinds[3])
    encoded = levels(lambda: _core.planes_encode(raw, kinds))
    stored = encoded[0]
    assert isinstance(stored, bytes)
    assert all(other == stored for other in encoded)
    assert decode(stored, len(raw)) == reference_planes.decode(stored, len(raw)) == raw


def test_values_that_lie_outside_of_the_sample() -> None:
    """Planes are chosen by a part of the values; each other value must come back, too."""
    raw = bytearray(floats(CHUNK_SIZE, PLANES_KIND_BFLOAT16))
    for at in range(1, len(raw), 8191):
        raw[at] ^= 0x55
    check(bytes(raw), PLANES_KIND_BFLOAT16)
    few = bytearray(np.random.default_rng(3).integers(0, 4, CHUNK_SIZE, np.uint8).tobytes())
    for at in range(0, len(few), 10007):
        few[at] = at % 251
    check(bytes(few), PLANES_KIND_BYTES)


@given(
    pieces=st.lists(st.tuples(st.binary(max_size=40), st.integers(1, 3000)), max_size=8),
    kind=st.sampled_from(ALL_KINDS),
    row_length=st.integers(0, 200),
    phase=st.integers(0, 300),
)
def test_any_bytes_come_back(pieces: list[tuple[bytes, int]], kind: int, row_length: int, phase: int) -> None:
    check(b"".join(piece * times for piece, times in pieces)[:200_000], kind, row_length, phase)


def test_refuses_what_is_no_chunk() -> None:
    for raw, kinds in (
        (bytes(CHUNK_SIZE + 1), bytes(9)),
        (bytes(10), b""),
        (bytes(10), bytes(2)),
        (bytes(10), b"\x0b"),
    ):
        with pytest.raises(ValueError, match=r"kind|chunk"):
            _core.planes_encode(raw, kinds)
    with pytest.raises(ValueError, match="larger than a chunk"):
        _core.planes_decode(bytes(32), bytearray(CHUNK_SIZE + 1))
    with pytest.raises((BufferError, TypeError)):
        _core.planes_decode(bytes(32), bytes(10))


def damaged(stored: bytes, rng: np.random.Generator) -> bytes:
    """The stored bytes, changed in one of several ways."""
    bytes_ = bytearray(stored)
    for _ in range(int(rng.integers(1, 4))):
        # Heads and tables are where it matters.
        at = int(rng.integers(0, min(len(bytes_), 300) if rng.random() < 0.7 else len(bytes_)))
        match int(rng.integers(0, 4)):
            case 0:
                bytes_[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                bytes_[at] = int(rng.integers(0, 256))
            case 2:
                del bytes_[at : at + 8 * int(rng.integers(1, 4))]
            case _:
                bytes_[at:at] = bytes(8)
        if not bytes_:
            break
    return bytes(bytes_)


def mutate(stored: bytes, size: int, times: int, seed: int) -> int:
    """How many of so many damaged chunks decode all the same. All levels and the reference agree on each."""
    rng = np.random.default_rng(seed)
    whole = 0
    for _ in range(times):
        bad = damaged(stored, rng)
        outcomes = levels(lambda bad=bad: decode(bad, size))  # type: ignore[misc]
        assert all(outcome == outcomes[0] for outcome in outcomes)
        try:
            assert reference_planes.decode(bad, size) == outcomes[0]
            whole += 1
        except reference_planes.Bad:
            assert isinstance(outcomes[0], str)
    return whole


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_damaged_chunks(kind: int) -> None:
    size = 20_000
    for raw, row_length in (
        (floats(size, kind), 0),
        (sparse(kind, 1, size // WIDTH[kind], 1)[: size // 2] + bytes(size), 50),
    ):
        stored = encode(raw, kind, row_length)
        assert stored is not None
        whole = mutate(stored, len(raw), 60, kind)
        assert 0 < whole < 60


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_many_damaged_chunks(kind: int) -> None:
    raw = floats(16_000, kind) + bytes(24_000)
    stored = encode(raw, kind, 100)
    assert stored is not None
    whole = mutate(stored, len(raw), 1500, 7)
    assert 0 < whole < 1500


def test_each_byte_that_is_missing_is_noticed() -> None:
    raw = floats(3000, PLANES_KIND_FLOAT32)
    stored = encode(raw, PLANES_KIND_FLOAT32)
    assert stored is not None
    for size in range(len(stored)):
        with pytest.raises(ValueError, match=r"\w"):
            decode(stored[:size], len(raw))
    for size in (0, 2999, 3001, CHUNK_SIZE):
        with pytest.raises(ValueError, match="raw size"):
            decode(stored, size)
