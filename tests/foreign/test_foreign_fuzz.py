"""Whatever bytes a file holds, the answer is a result or a typed error."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import pytest
import torch
from at_path import open_foreign
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fastckpt.errors import FastckptError
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.torch_state import read_state


def saved(**options: object) -> bytes:
    buffer = io.BytesIO()
    state = {
        "model": {"w": torch.nn.Parameter(torch.ones(4, 3)), "b": torch.zeros(3, dtype=torch.bfloat16)},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1], "big": 10**30}],
        "bytes": b"\x00\xff",
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda:1"),
        "dtype": torch.uint16,
        7: None,
    }
    torch.save(state, buffer, **options)
    return buffer.getvalue()


FILES = {
    "zip": saved(),
    "zip protocol 5": saved(pickle_protocol=5),
    "legacy": saved(_use_new_zipfile_serialization=False),
    "legacy protocol 4": saved(_use_new_zipfile_serialization=False, pickle_protocol=4),
    "safetensors": save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, metadata={"k": "v"}),
}


def pickle_of(raw: bytes) -> bytes:
    start = raw.index(b"\x80", 40)
    return raw[start : raw.index(b"PK\x07\x08")]


PICKLES = [pickle_of(FILES["zip"]), pickle_of(FILES["zip protocol 5"])]

edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=6,
)


def mutate(raw: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    data = bytearray(raw)
    for kind, place, piece in changes:
        at = int(place * len(data))
        if kind == "set":
            data[at : at + len(piece)] = piece
        elif kind == "insert":
            data[at:at] = piece
        else:
            del data[at : at + len(piece)]
    return bytes(data)


def reads_or_fails_well(data: bytes) -> None:
    with contextlib.suppress(FastckptError):
        read_state(data)


def opens_or_fails_well(path: Path) -> None:
    try:
        file = open_foreign(path)
    except FastckptError as error:
        failure = error
    else:
        check_bounds(file)
        return
    assert failure.path == str(path)
    assert str(failure)


def check_bounds(file: ForeignFile) -> None:
    for storage in file.storages:
        assert 0 <= storage.offset <= storage.offset + storage.nbytes <= file.size
    for entry in file.entries:
        if 0 not in entry.shape:
            assert entry.span[1] <= file.storages[entry.storage].nbytes


@given(st.sampled_from(PICKLES), edits)
def test_changed_pickles(raw: bytes, changes: list[tuple[str, float, bytes]]) -> None:
    reads_or_fails_well(mutate(raw, changes))


@given(st.lists(st.integers(0, 255), max_size=60).map(bytes))
def test_random_opcodes(raw: bytes) -> None:
    reads_or_fails_well(raw + b".")


@pytest.mark.parametrize("name", sorted(FILES))
def test_changed_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"

    @given(edits)
    def check(changes: list[tuple[str, float, bytes]]) -> None:
        path.write_bytes(mutate(FILES[name], changes))
        opens_or_fails_well(path)

    check()


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_any_safetensors_header(tmp_path: Path, header: bytes, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", len(header) + 1) + b"{" + header + data)
    opens_or_fails_well(path)


def test_every_flipped_byte_of_a_pickle() -> None:
    for raw in PICKLES:
        for at in range(len(raw)):
            for bit in (1, 128):
                changed = bytearray(raw)
                changed[at] ^= bit
                reads_or_fails_well(bytes(changed))
