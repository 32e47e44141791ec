"""SPEC.md's worked example of a chunk of planes is real: taken from its text, and checked.

``python tests/layout/test_spec_planes_example.py`` rewrites the listing after a deliberate change of the format.
"""

from __future__ import annotations

import struct

import reference_planes
from test_spec_example import SPEC, line_of, parse_listing

from fastckpt import _core
from fastckpt.constants import PLANES_KIND_BFLOAT16

BEGIN, END = "<!-- planes example: begin -->\n", "<!-- planes example: end -->\n"
VALUES = (1.0, -2.0, 0.5, 3.0, 1.5, -0.75, 1.25, 0.625)
ROUNDS = 16

FIELDS: list[tuple[int, str]] = [
    (1, "layout"),
    (1, "block_log2: 17"),
    (2, "reserved"),
    (4, "raw_size: 256"),
    (4, "row_length: there are no shifts"),
    (4, "phase"),
    (4, "row_count"),
    (4, "reserved"),
    (4, "block table: the only block begins at 32"),
    (4, "zeros up to a multiple of 8"),
    (1, "block: kind 5: bfloat16"),
    (7, "reserved"),
    (1, "plane 0, exponents: nested"),
    (1, "two levels"),
    (1, "base: the last level has no escapes"),
    (1, "last_symbol: a table of 3"),
    (4, "widths: 1 bit, then 1"),
    (1, "plane 1, signs and mantissas: nested"),
    (1, "two levels"),
    (1, "base"),
    (1, "last_symbol: a table of 5"),
    (4, "widths: 2 bits, then 1"),
    (3, "symbols of plane 0"),
    (5, "symbols of plane 1"),
    (2, "tile table: 7 x 8 bytes, masked"),
    (6, "zeros up to a multiple of 8"),
    (8, "tile: mask, groups 8 to 11 of 16 are zero"),
    (12, "plane 0, level 0: 96 digits of 1 bit"),
    (8, "level 1: 60 digits of 1 bit"),
    (12, "plane 1, level 0: the lower bits of 96 digits"),
    (12, "the higher bits of them"),
    (3, "level 1: 24 digits of 1 bit"),
    (1, "zeros up to a multiple of 8"),
]


def raw_bytes() -> bytes:
    """The raw bytes of the example: bfloat16 is the upper half of a float32."""
    numbers = [0.0 if 64 <= n < 96 else VALUES[n % 8] for n in range(8 * ROUNDS)]
    return b"".join(struct.pack("<f", number)[2:] for number in numbers)


def stored_bytes() -> bytes:
    stored = _core.planes_encode(raw_bytes(), bytes([PLANES_KIND_BFLOAT16]), row_length=0, phase=0)
    assert stored is not None
    return stored


def listing(chunk: bytes) -> str:
    """The annotated listing of the example, as it stands in SPEC.md."""
    lines = ["```text", "offset    bytes                                            meaning"]
    at = 0
    for length, meaning in FIELDS:
        lines.append(line_of(at, chunk[at : at + length].hex(" ").upper(), meaning))
        at += length
    assert at == len(chunk)
    return "\n".join([*lines, "```", ""])


def spec_listing() -> str:
    text = SPEC.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def test_listing_is_current() -> None:
    assert spec_listing() == listing(stored_bytes())


def test_listing_decodes_to_the_numbers_of_the_text() -> None:
    chunk, raw = parse_listing(spec_listing()), raw_bytes()
    assert reference_planes.decode(chunk, len(raw)) == raw
    decoded = bytearray(len(raw))
    _core.planes_decode(chunk, decoded)
    assert decoded == raw
    text = SPEC.read_text(encoding="utf-8")
    before = " ".join(text[: text.index(BEGIN)].rsplit("\n\n", 2)[1].split())
    assert ", ".join(map(str, VALUES)) in before
    assert f"{len(raw)} bytes" in before
    assert f"{len(chunk)} bytes" in before


def test_each_bit_that_is_not_filling_matters() -> None:
    """A changed bit is refused, or changes what comes out; but for zeros that readers ignore."""
    chunk, raw = parse_listing(spec_listing()), raw_bytes()
    ignored = set()
    for bit in range(8 * len(chunk)):
        changed = bytearray(chunk)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            if reference_planes.decode(bytes(changed), len(raw)) == raw:
                ignored.add(bit // 8)
        except reference_planes.Bad:
            continue
    starts = [sum(length for length, _ in FIELDS[:number]) for number in range(len(FIELDS))]
    filling = {
        at
        for start, (length, meaning) in zip(starts, FIELDS, strict=True)
        if "zeros" in meaning
        for at in range(start, start + length)
    }
    # Besides: block_log2, as there is one block anyway; the mask behind group 15; level 1 behind digit 60.
    others = {1, *range(74, 80), 99}
    assert ignored == filling | others


if __name__ == "__main__":
    whole = SPEC.read_text(encoding="utf-8")
    SPEC.write_text(
        whole[: whole.index(BEGIN) + len(BEGIN)] + listing(stored_bytes()) + whole[whole.index(END) :],
        encoding="utf-8",
    )
