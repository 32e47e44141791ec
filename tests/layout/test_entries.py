"""Entry tables: every tensor description comes back; impossible ones are refused."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable
from itertools import pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.constants import ENTRY_FLAG_REQUIRES_GRAD, ENTRY_FLAGS_KNOWN, MAX_NDIM, MAX_SHARED_NAME
from fastckpt.errors import DamagedError, FastckptError, UnsupportedVersionError
from fastckpt.layout.dtypes import BY_CODE, BY_NAME
from fastckpt.layout.entries import (
    Entry,
    EntryTable,
    check_entry,
    contiguous_stride,
    decode_entry_table,
    encode_entry_table,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@st.composite
def entries(draw: st.DrawFn, name: str) -> Entry:
    ndim = draw(st.integers(0, 5) | st.just(MAX_NDIM))
    dims = st.lists(U64, min_size=ndim, max_size=ndim).map(tuple)
    return Entry(
        name,
        draw(st.sampled_from(sorted(BY_NAME))),
        draw(dims),
        draw(dims),
        draw(U32),
        draw(U64),
        draw(st.integers(0, ENTRY_FLAGS_KNOWN)),
    )


@st.composite
def tables(draw: st.DrawFn) -> list[Entry]:
    texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=10)
    return [draw(entries(name)) for name in draw(st.lists(texts, unique=True, max_size=6))]


def table_of(*found: Entry) -> bytes:
    return encode_entry_table(found)


def use(table: EntryTable) -> list[Entry]:
    """Everything a reader does with a table."""
    table.names()
    table.storages()
    decoded = list(table)
    for entry in decoded:
        check_entry(entry, [2**40] * 8)
    return decoded


@given(tables())
def test_round_trip(written: list[Entry]) -> None:
    table = decode_entry_table(encode_entry_table(written))
    assert len(table) == len(written)
    assert list(table) == written
    assert table.names() == [entry.name for entry in written]
    assert table.storages() == [entry.storage for entry in written]
    for index in range(len(written)):
        assert table[index - len(written)] == written[index]


ALIKE = st.text("ab\0\u00e9", max_size=70)


@given(st.lists(ALIKE, unique=True, max_size=8))
def test_a_name_shares_all_it_can_with_the_one_before(names: list[str]) -> None:
    raw = encode_entry_table([Entry(name, "float32", (), (), 0, 0) for name in names])
    assert decode_entry_table(raw).names() == names
    encoded = [name.encode() for name in names]
    shared = [
        sum(1 for _ in takewhile(lambda ab: ab[0] == ab[1], zip(*pair, strict=False)))
        for pair in pairwise([b"", *encoded])
    ]
    shared = [min(common, MAX_SHARED_NAME) for common in shared]
    assert struct.unpack_from("<QQQ", raw)[2] == sum(map(len, encoded)) - sum(shared)


@given(tables())
def test_round_trip_through_a_view_that_is_not_aligned(written: list[Entry]) -> None:
    raw = encode_entry_table(written)
    assert list(decode_entry_table(memoryview(b"x" + raw)[1:])) == written


@given(tables(), st.data())
def test_damage_raises_only_our_errors(written: list[Entry], data: st.DataObject) -> None:
    raw = bytearray(encode_entry_table(written))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FastckptError):
        use(decode_entry_table(bytes(raw)))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_our_errors(raw: bytes) -> None:
    with contextlib.suppress(FastckptError):
        use(decode_entry_table(raw))


@given(tables())
def test_every_other_length_is_refused(written: list[Entry]) -> None:
    raw = encode_entry_table(written)
    for size in range(min(len(raw), 100)):
        with pytest.raises(DamagedError):
            decode_entry_table(raw[:size])
    with pytest.raises(DamagedError):
        decode_entry_table(raw + b"\0")


@pytest.mark.parametrize("field", [0, 8, 16])
@pytest.mark.parametrize("value", [5, 2**32, 2**61, 2**63, 2**64 - 1])
def test_counts_that_overflow_are_refused(field: int, value: int) -> None:
    raw = bytearray(table_of(Entry("w", "int8", (4,), (1,), 0, 0)))
    struct.pack_into("<Q", raw, field, value)
    with pytest.raises(DamagedError):
        decode_entry_table(bytes(raw))


def test_counts_that_add_up_by_chance_are_refused() -> None:
    # A byte of the kinds is said to be one of the names: the sizes add up, the columns do not.
    raw = bytearray(table_of(Entry("w", "int8", (4,), (1,), 0, 0)))
    struct.pack_into("<QQ", raw, 8, 19, 2)
    with pytest.raises(DamagedError):
        decode_entry_table(bytes(raw))


def test_entries_of_one_kind_take_few_bytes() -> None:
    entries = [Entry(f"layers.{n}.attention.weight", "float32", (4, 4), (4, 1), n, 0) for n in range(1000)]
    assert len(encode_entry_table(entries)) < 30 * len(entries)
    assert list(decode_entry_table(encode_entry_table(entries))) == entries


@pytest.mark.parametrize("size", [1, 62, 63, 64, 65, 200])
def test_a_name_shares_up_to_a_limit(size: int) -> None:
    names = ["x" * size, "x" * size + "a", "x" * size + "b", "é" * size, "é" * size + "ê"]
    entries = [Entry(name, "int8", (), (), 0, 0) for name in names]
    assert decode_entry_table(encode_entry_table(entries)).names() == names


def changed(offset: int, value: int) -> EntryTable:
    raw = bytearray(table_of(Entry("w", "int8", (4,), (1,), 0, 0)))
    raw[24 + offset] = value
    return decode_entry_table(bytes(raw))


@pytest.mark.parametrize("code", sorted(set(range(256)) - set(BY_CODE)))
def test_unknown_dtypes_are_refused(code: int) -> None:
    with pytest.raises(UnsupportedVersionError, match="dtype code"):
        changed(0, code)[0]


@pytest.mark.parametrize("flags", [16, 32, 64, 128, 255])
def test_unknown_flags_are_refused(flags: int) -> None:
    with pytest.raises(UnsupportedVersionError, match="flags"):
        changed(2, flags)[0]


def test_reserved_fields_are_zero() -> None:
    with pytest.raises(FastckptError):
        changed(3, 1)[0]


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("width", [0, 2, 3, 16, 255])
def test_columns_of_another_width_are_refused(column: int, width: int) -> None:
    with pytest.raises(DamagedError):
        changed(20 + 2 * column, width)


@pytest.mark.parametrize("offset", [21, 27])
def test_kinds_and_shares_that_cannot_be_are_refused(offset: int) -> None:
    with pytest.raises(DamagedError):
        changed(offset, 1).names()


def test_dimensions_are_limited() -> None:
    most = Entry("w", "int8", (1,) * MAX_NDIM, (1,) * MAX_NDIM, 0, 0)
    assert decode_entry_table(table_of(most))[0] == most
    more = Entry("w", "int8", (1,) * (MAX_NDIM + 1), (1,) * (MAX_NDIM + 1), 0, 0)
    with pytest.raises(DamagedError, match="too many dimensions"):
        decode_entry_table(table_of(more))[0]


def test_equal_names_are_refused() -> None:
    entry = Entry("w", "int8", (), (), 0, 0)
    with pytest.raises(DamagedError, match="same name"):
        decode_entry_table(table_of(entry, entry)).names()


def test_names_that_are_not_utf8_are_refused() -> None:
    raw = bytearray(table_of(Entry("ab", "int8", (), (), 0, 0)))
    raw[-1] = 0xFF
    with pytest.raises(DamagedError, match="UTF-8"):
        decode_entry_table(bytes(raw)).names()
    with pytest.raises(DamagedError, match="UTF-8"):
        decode_entry_table(bytes(raw))[0]


# --- the geometry of one entry ----------------------------------------------------


def entry(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, dtype: str = "float32") -> Entry:
    return Entry("w", dtype, shape, stride, 0, offset)


@pytest.mark.parametrize(
    ("found", "span", "numel", "contiguous"),
    [
        (entry((), ()), (0, 4), 1, True),
        (entry((3, 4), (4, 1)), (0, 48), 12, True),
        (entry((4, 3), (1, 4)), (0, 48), 12, False),
        (entry((2,), (3,), 1), (4, 20), 2, False),
        (entry((5,), (0,)), (0, 4), 5, False),
        (entry((0, 3), (3, 1)), (0, 0), 0, True),
        (entry((1, 4), (99, 1)), (0, 16), 4, True),
        (entry((2,), (1,), 3, "complex128"), (48, 80), 2, True),
        (entry((2,), (1,), 3, "float4_e2m1fn_x2"), (3, 5), 2, True),
    ],
)
def test_geometry(found: Entry, span: tuple[int, int], numel: int, contiguous: bool) -> None:
    assert found.span == span
    assert found.numel == numel
    assert found.nbytes == numel * found.itemsize
    assert found.is_contiguous is contiguous


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((), ()), ((3,), (1,)), ((2, 3), (3, 1)), ((2, 0, 3), (3, 3, 1)), ((5, 1, 2, 7), (14, 14, 7, 1))],
)
def test_contiguous_stride(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    assert contiguous_stride(shape) == stride


@given(st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(0, 9), min_size=4, max_size=4), st.integers(0, 9))
def test_span_is_what_numpy_reaches(shape: list[int], strides: list[int], offset: int) -> None:
    import numpy as np

    stride = tuple(strides[: len(shape)])
    found = entry(tuple(shape), stride, offset, "int16")
    storage = np.arange(200, dtype="int16")
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, [2 * s for s in stride])
    assert view.size == found.numel
    if view.size:
        assert found.span == (2 * int(view.min()), 2 * int(view.max()) + 2)
        check_entry(found, [found.span[1]])
        with pytest.raises(DamagedError, match="beyond its storage"):
            check_entry(found, [found.span[1] - 1])
    else:
        check_entry(found, [0])


def test_an_empty_view_may_begin_behind_its_storage() -> None:
    # zeros(3, 4)[3:, 2:] has storage_offset 14 in a storage of 12 elements.
    check_entry(entry((0, 2), (4, 1), 14), [48])


@pytest.mark.parametrize(
    "found",
    [
        entry((2**63,), (1,)),
        entry((1,), (2**63,)),
        entry((0,), (1,), 2**63),
        entry((0, 2**64 - 1), (1, 1)),
        entry((2**62, 2**62), (2**62, 1)),
        entry((2,), (2**63 - 1,)),
        entry((1,), (1,), 2**63 - 1),
    ],
)
def test_numbers_that_overflow_are_refused(found: Entry) -> None:
    with pytest.raises(DamagedError):
        check_entry(found, [2**63 - 1])


def test_unknown_storages_are_refused() -> None:
    with pytest.raises(DamagedError, match="storage 0 of 0"):
        check_entry(entry((), ()), [])


def test_shape_and_stride_of_different_length_are_refused() -> None:
    with pytest.raises(DamagedError, match="differ in length"):
        check_entry(entry((2, 2), (1,)), [100])


def test_dtypes_are_unique() -> None:
    assert len(BY_CODE) == len(BY_NAME)
    assert all(BY_CODE[dtype.code] is dtype for dtype in BY_NAME.values())
    assert 0 not in BY_CODE


def test_dtypes_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for name, dtype in BY_NAME.items():
        if hasattr(torch, name):
            assert getattr(torch, name).itemsize == dtype.itemsize, name


def first_failure(check: Callable[[], object]) -> str | None:
    try:
        check()
    except (DamagedError, UnsupportedVersionError) as error:
        return str(error)
    return None


def test_a_table_is_checked_as_its_entries_are_one_by_one() -> None:
    generator = random.Random(12)
    failures = 0
    for _ in range(600):
        geometries = [
            ((), ()),
            ((3,), (1,)),
            ((4, 5), (5, 1)),
            ((0, 7), (7, 1)),
            ((2, 2), (1 << generator.choice([2, 62, 63]), 1)),
        ]
        entries = []
        for number in range(generator.randrange(1, 9)):
            shape, stride = generator.choice(geometries)
            entries.append(
                Entry(
                    f"t{number}",
                    generator.choice(["float32", "int8", "bool"]),
                    shape,
                    stride,
                    generator.randrange(4),
                    generator.choice([0, 0, 1, 30, 1 << 63]),
                    generator.choice([0, 0, 0, ENTRY_FLAG_REQUIRES_GRAD, 1 << 7]),
                )
            )
        sizes = [generator.choice([0, 12, 80, 200, 1 << 40]) for _ in range(generator.choice([3, 4, 4, 4]))]
        table = decode_entry_table(encode_entry_table(entries))

        def one_by_one(table: EntryTable = table, sizes: list[int] = sizes) -> None:
            for entry in [table[index] for index in range(len(table))]:
                check_entry(entry, sizes)

        expected = first_failure(one_by_one)
        assert first_failure(lambda table=table, sizes=sizes: table.checked(sizes)) == expected  # type: ignore[misc]
        failures += expected is not None
        if expected is None:
            assert table.checked(sizes) == entries
    assert 200 < failures < 590
