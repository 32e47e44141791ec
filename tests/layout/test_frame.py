"""Superblock, index and footer: round trip, damage, versions, and places that cannot be."""

from __future__ import annotations

import contextlib
import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.constants import (
    FOOTER_SIZE,
    MAGIC_FOOTER,
    MAGIC_INDEX,
    MAGIC_SUPERBLOCK,
    MAX_SECTIONS,
    SECTION_DIRECTORY,
    SECTION_FLAG_MUST_UNDERSTAND,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
    SECTION_PARITY,
    SECTION_SOURCE,
)
from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError, UnsupportedVersionError
from fastckpt.layout.blocks import Extent, seal
from fastckpt.layout.frame import (
    Footer,
    Section,
    Superblock,
    decode_footer,
    decode_index,
    decode_superblock,
    encode_footer,
    encode_index,
    encode_superblock,
    index_size,
    root_digest,
)

DIGEST = bytes(range(16))
FILE_SIZE = 1 << 20


def superblock() -> bytes:
    return encode_superblock(Extent(4096, 8192), DIGEST)


def sections(*more: Section) -> tuple[Section, ...]:
    return (
        Section(SECTION_MANIFEST, 1, Extent(4096, 4096), DIGEST),
        *more,
        Section(SECTION_INDEX, 1, Extent(16384, 8192), bytes(16)),
        Section(SECTION_DIRECTORY, 1, Extent(24576, 4096), bytes(16)),
        Section(SECTION_MANIFEST_COPY, 1, Extent(FILE_SIZE - 8192, 4096), DIGEST),
    )


def footer(*more: Section) -> bytes:
    return encode_footer(Footer(FILE_SIZE, 5, DIGEST, sections(*more)))


def decode(block: bytes) -> Footer:
    return decode_footer(block, file_size=FILE_SIZE)


def resealed(block: bytes, *changes: tuple[int, str, int]) -> bytes:
    """The block with fields changed (offset, struct code, value), and a right digest."""
    changed = bytearray(block)
    for offset, code, value in changes:
        struct.pack_into("<" + code, changed, offset, value)
    return seal(bytes(block[:8]), changed[16:-16])


# --- superblock ---------------------------------------------------------------


def test_superblock_round_trip() -> None:
    assert len(superblock()) == 4096
    assert decode_superblock(superblock()) == Superblock(Extent(4096, 8192), DIGEST)


@pytest.mark.parametrize("change", [0x01, 0xFF])
def test_every_changed_byte_of_the_superblock_is_noticed(change: int) -> None:
    block = bytearray(superblock())
    for offset in range(len(block)):
        block[offset] ^= change
        with pytest.raises(NotACheckpointError if offset < 8 else DamagedError):
            decode_superblock(bytes(block))
        block[offset] ^= change


@given(st.binary(max_size=100).filter(lambda raw: not raw.startswith(MAGIC_SUPERBLOCK)))
def test_other_files_are_no_checkpoints(raw: bytes) -> None:
    with pytest.raises(NotACheckpointError):
        decode_superblock(raw)


@pytest.mark.parametrize("size", [8, 15, 16, 100, 4095])
def test_cut_superblock(size: int) -> None:
    with pytest.raises(DamagedError):
        decode_superblock(superblock()[:size])


@pytest.mark.parametrize(
    ("offset", "code", "value"),
    [(16, "H", 0), (16, "H", 3), (18, "B", 1), (23, "B", 1), (24, "Q", 1), (24, "Q", 2**63)]
    + [(offset, "I", value) for offset in (40, 44, 48, 52) for value in (0, 1, 2**20 + 1)],
)
def test_later_versions_are_refused(offset: int, code: str, value: int) -> None:
    with pytest.raises(UnsupportedVersionError):
        decode_superblock(resealed(superblock(), (offset, code, value)))
    if offset < 40:
        with pytest.raises(UnsupportedVersionError):
            decode(resealed(footer(), (offset, code, value)))


def test_may_ignore_flags_are_ignored() -> None:
    assert decode_superblock(resealed(superblock(), (32, "Q", 2**64 - 1))) == decode_superblock(superblock())
    assert decode(resealed(footer(), (32, "Q", 2**64 - 1))) == decode(footer())


def test_superblock_padding_and_place_of_the_manifest() -> None:
    for offset in (88, 4096 - 17):
        with pytest.raises(DamagedError, match="padding"):
            decode_superblock(resealed(superblock(), (offset, "B", 1)))
    with pytest.raises(DamagedError, match="does not follow"):
        decode_superblock(resealed(superblock(), (56, "Q", 8192)))


# --- index --------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 3)), max_size=5))
def test_index_round_trip(shape: list[tuple[int, int]]) -> None:
    headers = [(offset, bytes((n,)) * (4096 * size)) for n, (offset, size) in enumerate(shape)]
    block = encode_index(headers)
    assert len(block) == index_size([len(header) for _, header in headers])
    assert [(offset, bytes(header)) for offset, header in decode_index(block)] == headers


INDEX = encode_index([(8192, b"a" * 4096), (20480, b"b" * 8192)])


@pytest.mark.parametrize("change", [0x01, 0xFF])
def test_every_changed_byte_of_the_index_is_noticed(change: int) -> None:
    block = bytearray(encode_index([(8192, b"")]))
    for offset in range(len(block)):
        block[offset] ^= change
        with pytest.raises(DamagedError):
            decode_index(bytes(block))
        block[offset] ^= change


@pytest.mark.parametrize("count", [1, 3, 10**6, 2**60, 2**64 - 1])
def test_index_counts_that_cannot_be_are_refused(count: int) -> None:
    with pytest.raises(DamagedError):
        decode_index(resealed(INDEX, (16, "Q", count)))


@pytest.mark.parametrize("size", [0, 4095, 8192 + 4096, 2**32, 2**63, 2**64 - 1])
def test_index_sizes_that_cannot_be_are_refused(size: int) -> None:
    with pytest.raises(DamagedError):
        decode_index(resealed(INDEX, (32 + 16 + 8, "Q", size)))


def test_index_reserved_bytes_are_zero() -> None:
    for offset in (24, len(INDEX) - 17):
        with pytest.raises(DamagedError):
            decode_index(resealed(INDEX, (offset, "B", 1)))


@given(st.integers(0, 80), st.binary(min_size=1, max_size=8))
def test_index_changed_and_sealed_again_raises_only_our_errors(at: int, change: bytes) -> None:
    body = bytearray(INDEX[16:-16])
    body[at : at + len(change)] = change
    with contextlib.suppress(FastckptError):
        decode_index(seal(MAGIC_INDEX, body))


# --- footer -------------------------------------------------------------------


def test_footer_round_trip() -> None:
    source = Section(SECTION_SOURCE, 0, Extent(12288, 4096), b"s" * 16)
    found = decode(footer(source))
    assert found == Footer(FILE_SIZE, 5, DIGEST, sections(source))
    assert found.section(SECTION_SOURCE) == source
    assert found.section(SECTION_PARITY) is None
    assert len(footer()) == FOOTER_SIZE


@pytest.mark.parametrize("change", [0x01, 0xFF])
def test_every_changed_byte_of_the_footer_is_noticed(change: int) -> None:
    block = bytearray(footer())
    for offset in range(len(block)):
        block[offset] ^= change
        with pytest.raises(DamagedError):
            decode(bytes(block))
        block[offset] ^= change


@pytest.mark.parametrize("size", [0, FILE_SIZE - 1, FILE_SIZE + 1, FILE_SIZE + 4096])
def test_footer_of_a_file_of_another_length(size: int) -> None:
    with pytest.raises(DamagedError, match="length"):
        decode_footer(footer(), file_size=size)


def test_unknown_sections() -> None:
    ignored = Section(77, 0, Extent(8192, 4096), DIGEST)
    assert decode(footer(ignored)).section(77) == ignored
    unused_bits = Section(77, 0xFFFF_FFFE, Extent(8192, 4096), DIGEST)
    assert decode(footer(unused_bits)).section(77) == unused_bits
    for kind in (0, SECTION_PARITY, 77, 2**32 - 1):
        with pytest.raises(UnsupportedVersionError, match=f"section of kind {kind}"):
            decode(footer(Section(kind, SECTION_FLAG_MUST_UNDERSTAND, Extent(8192, 4096), DIGEST)))


@pytest.mark.parametrize(
    "extent",
    [
        Extent(1, 4096),
        Extent(4096, 100),
        Extent(FILE_SIZE - 4096, 4096),
        Extent(FILE_SIZE, 4096),
        Extent(2**64 - 4096, 4096),
        Extent(4096, 2**64 - 4096),
        Extent(2**63, 2**63),
    ],
)
def test_sections_beyond_the_file_are_refused(extent: Extent) -> None:
    with pytest.raises(DamagedError, match="beyond the file"):
        decode(footer(Section(SECTION_SOURCE, 0, extent, DIGEST)))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_every_needed_section_stands_exactly_once(missing: int) -> None:
    rows = sections()
    for wrong in (rows[:missing] + rows[missing + 1 :], rows + rows[missing : missing + 1]):
        with pytest.raises(DamagedError, match="exactly one section"):
            decode(encode_footer(Footer(FILE_SIZE, 5, DIGEST, wrong)))


def test_both_manifests_are_the_same() -> None:
    rows = sections()
    other = (*rows[:-1], rows[-1]._replace(digest=bytes(16)))
    with pytest.raises(DamagedError, match="two different manifests"):
        decode(encode_footer(Footer(FILE_SIZE, 5, DIGEST, other)))


def test_as_many_sections_as_fit() -> None:
    more = [Section(1000 + n, 0, Extent(4096, 4096), DIGEST) for n in range(MAX_SECTIONS - 4)]
    assert len(footer(*more)) == FOOTER_SIZE
    assert len(decode(footer(*more)).sections) == MAX_SECTIONS


@pytest.mark.parametrize("count", [MAX_SECTIONS + 1, 2**31, 2**32 - 1])
def test_more_sections_than_fit_are_refused(count: int) -> None:
    with pytest.raises(DamagedError, match="more sections"):
        decode(resealed(footer(), (72, "I", count)))


def test_footer_reserved_bytes_are_zero() -> None:
    for offset in (76, 80 + 3 * 40, FOOTER_SIZE - 17):
        with pytest.raises(DamagedError):
            decode(resealed(footer(), (offset, "B", 1)))


@given(st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_footer_changed_and_sealed_again_raises_only_our_errors(at: int, change: bytes) -> None:
    body = bytearray(footer()[16:-16])
    body[at : at + len(change)] = change
    with contextlib.suppress(FastckptError):
        decode(seal(MAGIC_FOOTER, body))


def test_magics_differ() -> None:
    with pytest.raises(DamagedError, match="no footer here"):
        decode(superblock())
    with pytest.raises(NotACheckpointError):
        decode_superblock(footer())
    assert superblock()[:8] == MAGIC_SUPERBLOCK


def test_root_digest() -> None:
    a, b = b"a" * 16, b"b" * 16
    assert root_digest(DIGEST, [a, b]) == xxhash.xxh3_128_digest(DIGEST + a + b)
    assert len({root_digest(DIGEST, order) for order in ([a, b], [b, a], [a], [])}) == 4
