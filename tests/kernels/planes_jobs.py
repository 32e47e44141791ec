"""What the tests of the kernels that decode planes let the interpreter do: see conftest."""

from __future__ import annotations

import torch

from fastckpt.kernels.decode_planes import decode_planes, room_for

Chunk = tuple[bytes, int]
"""Stored bytes, and how many raw bytes they are said to be."""
GUARD = 64


def decode(chunks: list[Chunk], shift: int = 0) -> list[bytes | None]:
    """What the kernels make of each chunk, in one launch; None if they say that it is bad.

    The raw bytes begin ``shift`` bytes behind a multiple of 8. Not one beside them, of the tables or of the flags of
    others may be touched.
    """
    stored = torch.zeros(sum(len(data) + 24 for data, _ in chunks) + 8, dtype=torch.uint8)
    raw = torch.full((sum(size + 2 * GUARD + 8 for _, size in chunks) + 8,), 0xA5, dtype=torch.uint8)
    at, to = -stored.data_ptr() % 8, -raw.data_ptr() % 8
    rows, places = [], []
    for data, size in chunks:
        stored[at : at + len(data)] = torch.frombuffer(bytearray(data or b"?"), dtype=torch.uint8)[: len(data)]
        begin = to + GUARD + shift
        rows.append((stored.data_ptr() + at, len(data), raw.data_ptr() + begin, size))
        places.append((begin, size))
        at += -(-len(data) // 8) * 8 + 8
        to = -(-(begin + size + GUARD) // 8) * 8
    before = stored.clone()
    room = torch.full((room_for(len(chunks)) + GUARD,), 0x5A, dtype=torch.uint8)
    flags = torch.zeros(len(chunks) + 2, dtype=torch.int32)
    largest = max(size for _, size in chunks)
    decode_planes(torch.tensor(rows, dtype=torch.int64), flags[1:-1], room[:-GUARD], largest=largest)
    assert torch.equal(stored, before)
    assert room[-GUARD:].eq(0x5A).all()
    assert flags[0] == flags[-1] == 0
    decoded = [bytes(raw[begin : begin + size].tolist()) for begin, size in places]
    for begin, size in places:
        raw[begin : begin + size] = 0xA5
    assert raw.eq(0xA5).all(), "bytes beside the chunks were written"
    return [None if bad else data for data, bad in zip(decoded, flags[1:-1].tolist(), strict=True)]
