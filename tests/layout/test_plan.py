"""The plan: deterministic, aligned, within its limits, and what decoded headers accept."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fastckpt.constants import PACK_ALIGNMENT, PACK_LIMIT, PACK_MAX_STORAGES, PACK_THRESHOLD
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import encode_entry_table
from fastckpt.layout.places import StoragePlace
from fastckpt.layout.plan import plan_records
from fastckpt.layout.records import (
    NO_LINKS,
    PackedStorage,
    count_leaves,
    decode_record_header,
    encode_record_header,
    raw_chunk_table,
)

sizes = st.lists(
    st.one_of(
        st.integers(0, 200),
        st.integers(0, 2 * PACK_THRESHOLD),
        st.sampled_from([0, 1, 63, 64, 65, PACK_THRESHOLD - 1, PACK_THRESHOLD, 3 * PACK_LIMIT]),
    ),
    max_size=120,
)


@given(sizes)
def test_every_storage_has_one_place(storage_sizes: list[int]) -> None:
    records, places = plan_records(storage_sizes)
    assert [place.nbytes for place in places] == storage_sizes
    held = [(s.storage, number, s.offset, s.nbytes) for number, r in enumerate(records) for s in r.storages]
    assert sorted(held) == [(n, p.record, p.offset, p.nbytes) for n, p in enumerate(places)]


@given(sizes)
def test_deterministic(storage_sizes: list[int]) -> None:
    assert plan_records(storage_sizes) == plan_records(list(storage_sizes))


@given(sizes)
def test_limits(storage_sizes: list[int]) -> None:
    records, _ = plan_records(storage_sizes)
    for record in records:
        assert record.storages
        end = 0
        for storage in record.storages:
            assert storage.offset == align(end, PACK_ALIGNMENT)
            end = storage.offset + storage.nbytes
        assert record.raw_size == end
        if len(record.storages) > 1 or record.storages[0].nbytes < PACK_THRESHOLD:
            assert record.raw_size <= PACK_LIMIT
            assert len(record.storages) <= PACK_MAX_STORAGES
            assert all(storage.nbytes < PACK_THRESHOLD for storage in record.storages)


@given(sizes)
def test_order(storage_sizes: list[int]) -> None:
    records, _ = plan_records(storage_sizes)
    firsts = [record.storages[0].storage for record in records]
    assert firsts == sorted(firsts)
    for record in records:
        numbers = [storage.storage for storage in record.storages]
        assert numbers == sorted(set(numbers))


@given(sizes)
def test_packs_are_as_full_as_they_can_be(storage_sizes: list[int]) -> None:
    records, _ = plan_records(storage_sizes)
    packs = [r for r in records if r.storages[0].nbytes < PACK_THRESHOLD]
    for pack, following in pairwise(packs):
        too_large = align(pack.raw_size, PACK_ALIGNMENT) + following.storages[0].nbytes > PACK_LIMIT
        assert too_large or len(pack.storages) == PACK_MAX_STORAGES


@given(sizes)
def test_planned_records_decode(storage_sizes: list[int]) -> None:
    records, _ = plan_records(storage_sizes)
    for number, record in enumerate(records):
        leaves = bytes(8 * count_leaves(record.raw_size))
        block = encode_record_header(
            number=number,
            offset=4096,
            raw_size=record.raw_size,
            stored_size=record.raw_size,
            chunks=raw_chunk_table(record.raw_size, leaves),
            leaves=leaves,
            storages=record.storages,
            entry_table=encode_entry_table([]),
            manifest_digest=bytes(16),
            links=NO_LINKS,
        )
        assert decode_record_header(block, limit=2**50).storages == record.storages


def test_no_storages() -> None:
    assert plan_records([]) == ([], [])


def test_small_and_large() -> None:
    records, places = plan_records([100, PACK_THRESHOLD, 28, 0])
    assert [record.storages for record in records] == [
        [PackedStorage(0, 0, 100), PackedStorage(2, 128, 28), PackedStorage(3, 192, 0)],
        [PackedStorage(1, 0, PACK_THRESHOLD)],
    ]
    assert [record.raw_size for record in records] == [192, PACK_THRESHOLD]
    assert places == [
        StoragePlace(100, 0, 0),
        StoragePlace(PACK_THRESHOLD, 0, 1),
        StoragePlace(28, 128, 0),
        StoragePlace(0, 192, 0),
    ]


def test_a_pack_may_be_exactly_full() -> None:
    half = PACK_THRESHOLD // 2
    count = PACK_LIMIT // half
    records, _ = plan_records([half] * count + [0, 1])
    assert [len(record.storages) for record in records] == [count + 1, 1]
    assert [record.raw_size for record in records] == [PACK_LIMIT, 1]


def test_a_pack_holds_a_limited_number_of_storages() -> None:
    records, _ = plan_records([0] * (PACK_MAX_STORAGES + 1))
    assert [len(record.storages) for record in records] == [PACK_MAX_STORAGES, 1]
