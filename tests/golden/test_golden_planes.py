"""The golden file of the codec planes: what is in it, and that every instruction set writes and reads it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import reference_planes  # noqa: E402
from describe import describe  # noqa: E402
from golden_states import planes  # noqa: E402
from reference_reader import read  # noqa: E402

import fastckpt  # noqa: E402
from fastckpt import _core  # noqa: E402
from fastckpt import constants as c  # noqa: E402

GOLDEN = Path(__file__).parent / "v2" / "planes.fckpt"
KINDS = {
    c.PLANES_KIND_BYTES,
    c.PLANES_KIND_QUAD_WORDS,
    c.PLANES_KIND_FLOAT16,
    c.PLANES_KIND_BFLOAT16,
    c.PLANES_KIND_FLOAT32,
    c.PLANES_KIND_FLOAT64,
    c.PLANES_KIND_FLOAT8_E4,
    c.PLANES_KIND_FLOAT8_E5,
}


def test_the_golden_file_has_all_that_a_chunk_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds, modes, found, chunks = (set() for _ in range(4))
    real_chunk, real_block, real_tile = (getattr(reference_planes, f"decode{of}") for of in ("", "_block", "_tile"))

    def chunk(stored: bytes, raw_size: int) -> bytes:
        chunks.add(stored)
        (row_length,) = struct.unpack_from("<I", stored, 8)
        found.update(["shifts"] if row_length else [], [f"blocks of 2^{stored[1]}"])
        blocks = -(-raw_size // (1 << stored[1]))
        places = struct.unpack_from(f"<{blocks}I", stored, 24)
        found.update(["a block of zeros"] if 0 in places else [])
        return bytes(real_chunk(stored, raw_size))

    def block(source: Any, raw: int, *rest: Any) -> bytes:
        kind = source.data[source.at]
        kinds.add(kind)
        found.update(["rest"] if raw % reference_planes.KINDS[kind][0] else [])
        return bytes(real_block(source, raw, *rest))

    def tile(data: Any, masked: bool, n: int, planes: Any, *rest: Any) -> bytes:
        modes.update(plane.mode for plane in planes)
        found.add("no mask" if not masked else "a mask" if data.data else "a tile of zeros")
        return bytes(real_tile(data, masked, n, planes, *rest))

    for name, with_record in (("decode", chunk), ("decode_block", block), ("decode_tile", tile)):
        monkeypatch.setattr(reference_planes, name, with_record)
    read(GOLDEN)
    assert len(chunks) == 5
    assert kinds == KINDS
    assert modes == {0, 1, 2}
    assert found == {
        *("shifts", "blocks of 2^17", "blocks of 2^20", "a block of zeros", "rest"),
        *("no mask", "a mask", "a tile of zeros"),
    }


@pytest.mark.parametrize("level", _core.simd_levels())
def test_each_instruction_set_writes_and_reads_the_golden_file(level: str, tmp_path: Path) -> None:
    before = _core.simd_level()
    try:
        _core.set_simd_level(level)
        fastckpt.save(planes(), tmp_path / "again.fckpt", codec="planes")
        assert (tmp_path / "again.fckpt").read_bytes() == GOLDEN.read_bytes()
        assert describe(fastckpt.load(GOLDEN)) == describe(planes())
    finally:
        _core.set_simd_level(before)
