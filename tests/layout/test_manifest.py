"""The manifest: round trip, damage, and sizes that cannot be."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.errors import DamagedError, FastckptError, UnsupportedVersionError
from fastckpt.layout.blocks import align, block_digest, seal
from fastckpt.layout.entries import Entry
from fastckpt.layout.manifest import Manifest, decode_manifest, encode_manifest
from fastckpt.layout.places import StoragePlace
from fastckpt.layout.tree import TensorRef, decode_tree, encode_tree


def refuse(value: object, path: object) -> object:
    raise TypeError(value)


def tree(state: object) -> bytes:
    return encode_tree(state, refuse)


ENTRIES = [Entry("a.w", "float32", (4,), (1,), 0, 0), Entry("a.b", "int8", (), (), 1, 3, 2)]
STATE = {"a": {"w": TensorRef(0), "b": TensorRef(1)}, "step": 7}
PLACES = [StoragePlace(16, 0, 0), StoragePlace(4, 64, 0)]


def example() -> bytes:
    return encode_manifest(PLACES, ENTRIES, tree(STATE), tree({"run": "x"}), 1)


def use(manifest: Manifest) -> None:
    """Everything a reader does with a manifest."""
    manifest.checked_entries()
    manifest.entries.names()
    decode_tree(manifest.tree, len(manifest.entries))
    _ = manifest.metadata


def test_round_trip() -> None:
    manifest = decode_manifest(example())
    use(manifest)
    assert manifest.storages == PLACES
    assert list(manifest.entries) == ENTRIES
    assert decode_tree(manifest.tree, 2) == STATE
    assert manifest.metadata == {"run": "x"}
    assert manifest.record_count == 1
    assert manifest.digest == block_digest(example())


def placed(storages: list[tuple[int, int]]) -> list[StoragePlace]:
    """Storages of these sizes in these records, each at its place."""
    ends = [0] * 7
    places = []
    for nbytes, record in storages:
        places.append(StoragePlace(nbytes, align(ends[record], 64), record))
        ends[record] = places[-1].offset + nbytes
    return places


@given(
    st.lists(st.tuples(st.integers(0, 2**56), st.integers(0, 6)), max_size=5).map(placed),
    st.lists(st.text("abc.é", max_size=9), unique=True, max_size=5),
    st.binary(max_size=70),
    st.binary(max_size=70),
)
def test_round_trip_of_any_sizes(places: list[StoragePlace], names: list[str], first: bytes, second: bytes) -> None:
    entries = [Entry(name, "bool", (n,), (1,), n, 0) for n, name in enumerate(names)]
    manifest = decode_manifest(encode_manifest(places, entries, first, second, 7))
    assert manifest.storages == places
    assert list(manifest.entries) == entries
    assert (manifest.tree, manifest.metadata_tree) == (first, second)


def test_empty_state() -> None:
    block = encode_manifest([], [], tree({}), tree({}), 0)
    assert len(block) == 4096
    use(decode_manifest(block))


@pytest.mark.parametrize("change", [0x01, 0xFF])
def test_every_changed_byte_is_noticed(change: int) -> None:
    block = bytearray(example())
    for offset in range(len(block)):
        block[offset] ^= change
        with pytest.raises(DamagedError):
            decode_manifest(bytes(block))
        block[offset] ^= change


BODY = example()[16:-16]


@given(st.integers(0, 300), st.binary(min_size=1, max_size=8))
def test_changed_and_sealed_again_raises_only_our_errors(at: int, change: bytes) -> None:
    body = bytearray(BODY)
    body[at : at + len(change)] = change
    with contextlib.suppress(FastckptError):
        use(decode_manifest(seal(b"FCKPTMAN", body)))


def resealed(*changes: tuple[int, str, int]) -> bytes:
    """The example with fields changed (offset in the block, struct code, value), and a right digest."""
    block = bytearray(example())
    for offset, code, value in changes:
        struct.pack_into("<" + code, block, offset, value)
    return seal(b"FCKPTMAN", block[16:-16])


@pytest.mark.parametrize("field", [16, 24, 40, 48, 56, 64])
@pytest.mark.parametrize("value", [0, 3, 4096, 2**32, 2**63, 2**64 - 8, 2**64 - 1])
def test_sizes_that_cannot_be_are_refused(field: int, value: int) -> None:
    with pytest.raises(DamagedError):
        use(decode_manifest(resealed((field, "Q", value))))


@pytest.mark.parametrize("offset", [74, 95, 4096 - 17])
def test_reserved_bytes_are_zero(offset: int) -> None:
    with pytest.raises(DamagedError):
        decode_manifest(resealed((offset, "B", 1)))


@pytest.mark.parametrize("version", [1, 3, 2**16 - 1])
def test_unknown_versions_are_refused(version: int) -> None:
    with pytest.raises(UnsupportedVersionError):
        decode_manifest(resealed((72, "H", version)))


def test_storages_that_overflow_are_refused() -> None:
    block = encode_manifest([StoragePlace(2**63, 0, 0)] * 2, [], tree({}), tree({}), 1)
    with pytest.raises(DamagedError, match="63 bits"):
        decode_manifest(block)


def test_padding_between_tables_is_zero() -> None:
    entry_table_size = struct.unpack_from("<Q", example(), 48)[0]
    assert entry_table_size % 8
    with pytest.raises(DamagedError, match="padding"):
        decode_manifest(resealed((96 + 8 + entry_table_size, "B", 1)))


def test_storages_of_unknown_records_are_refused() -> None:
    with pytest.raises(DamagedError, match="record 1 of 1"):
        decode_manifest(resealed((96 + 4, "B", 1)))


def test_entries_beyond_their_storage_are_refused() -> None:
    with pytest.raises(DamagedError, match="beyond its storage"):
        decode_manifest(resealed((96 + 1, "B", 15))).checked_entries()


def test_metadata_must_be_a_dict_without_tensors() -> None:
    for metadata in ([], {"a": TensorRef(0)}):
        with pytest.raises(DamagedError):
            _ = decode_manifest(encode_manifest(PLACES, ENTRIES, tree(STATE), tree(metadata), 1)).metadata
