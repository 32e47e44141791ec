"""safetensors files: what the library writes is read the same; what the format forbids is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from at_path import open_foreign
from safetensors.torch import load_file, save_file

import fastckpt
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.tree import TensorRef


def write(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def tensor(start: int, end: int, *, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def test_same_as_the_library(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    raw = torch.arange(48, dtype=torch.uint8).reshape(3, 16)
    state = {}
    for name in sorted(BY_NAME.keys() - {"complex32", "complex128"}):
        if hasattr(torch, name):
            state[name] = raw.clone().view(getattr(torch, name)) if name != "bool" else raw > 3
    state |= {"scalar": torch.tensor(1.5), "empty": torch.empty(3, 0), "имя": torch.ones(2)}
    save_file(state, path, metadata={"format": "pt", "step": "4"})
    file = open_foreign(path)
    loaded = load_file(path)
    assert file.kind == "safetensors"
    assert file.metadata == {"format": "pt", "step": "4"}
    assert file.opaque == []
    assert file.tree == {entry.name: TensorRef(i) for i, entry in enumerate(file.entries)}
    assert {entry.name for entry in file.entries} == set(loaded)
    data = path.read_bytes()
    for index, entry in enumerate(file.entries):
        expected = loaded[entry.name]
        assert entry.dtype == str(expected.dtype).removeprefix("torch.")
        assert entry.shape == tuple(expected.shape)
        assert entry.stride == expected.stride()
        assert entry.storage == index
        storage = file.storages[index]
        assert storage.crc is None
        raw_bytes = expected.contiguous().reshape(-1).view(torch.uint8) if expected.numel() else torch.empty(0)
        assert data[storage.offset : storage.offset + storage.nbytes] == bytes(raw_bytes.numpy().tobytes())


@pytest.mark.parametrize(
    "header",
    [{"__metadata__": None, "a": tensor(0, 1)}, {"a": tensor(0, 1) | {"x": 1}}],
    ids=["metadata is null", "more fields"],
)
def test_what_the_safetensors_library_reads_is_whole(tmp_path: Path, header: dict[str, object]) -> None:
    path = write(tmp_path / "a.safetensors", header, b"\x07")
    assert load_file(path)["a"].item() == 7
    assert open_foreign(path).metadata == {}
    assert fastckpt.load(path)["a"].item() == 7
    report = fastckpt.salvage(path, include=["unverified"])
    assert (report.findings, report.structure, report.complete, report.exit_code) == ([], "whole", True, 0)


def test_a_dtype_that_torch_lacks_is_no_damage(tmp_path: Path) -> None:
    six_bits = {"a": tensor(0, 3, dtype="F6_E2M3", shape=[4]), "b": tensor(3, 4)}
    report = fastckpt.salvage(write(tmp_path / "a.safetensors", six_bits, bytes(4)), include=["unverified"])
    assert (report.findings, report.counts["unverified"], report.exit_code) == ([], 2, 0)
    assert not report.complete, "its dtype does not come back"
    assert any("F6_E2M3" in note for note in report.notes)


NOT_OF_TORCH = {
    "6 bits": tensor(0, 3, dtype="F6_E2M3", shape=[4]),
    "odd 4 bits": tensor(0, 3, dtype="F4", shape=[2, 3]),
    "65 dimensions": tensor(0, 3, shape=[1] * 64 + [3]),
}


@pytest.mark.parametrize("kind", NOT_OF_TORCH)
def test_what_torch_cannot_hold_is_an_object_with_its_bytes(tmp_path: Path, kind: str) -> None:
    header = {"a": NOT_OF_TORCH[kind], "b": tensor(3, 4)}
    path = write(tmp_path / "a.safetensors", header, b"\x01\x02\x03\x07")
    (own,), back = [fastckpt.convert(path)], tmp_path / "back.safetensors"
    assert "carried as they are" in own[0].notes[0]
    fastckpt.convert(own[0].destination, back)
    assert back.read_bytes() == path.read_bytes()
    for file in (path, own[0].destination):
        with pytest.raises(UnsupportedStateError, match=r"state\['a'\] is a tensor of"):
            fastckpt.load(file)
        kept = fastckpt.load(file, opaque="keep")
        assert kept["a"].state == {"dtype": header["a"]["dtype"], "shape": header["a"]["shape"]}
        assert kept["a"].tensors["tensor"].tolist() == [1, 2, 3]
        assert fastckpt.load(file, keys="*")["a"].tolist() == [1, 2, 3]
    assert fastckpt.verify(path).ok
    with pytest.raises(UnsupportedStateError, match="a is a tensor of"):
        fastckpt.convert(path, tmp_path / "chosen.safetensors", keys="a")


def test_bytes_behind_the_last_tensor_cost_no_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": tensor(0, 2)}, b"\x01\x02\x03")
    own, back = tmp_path / "a.fckpt", tmp_path / "back.safetensors"
    assert fastckpt.load(path)["a"].tolist() == [1, 2]
    report = fastckpt.verify(path)
    assert not report.ok
    assert [finding.message for finding in report.findings if finding.kind == "inconsistent"]
    fastckpt.convert(path, own)
    fastckpt.convert(own, back)
    assert back.read_bytes() == path.read_bytes()
    with pytest.raises(DamagedError, match="not every byte of it is accounted for"):
        fastckpt.convert(path, tmp_path / "b.fckpt", replace=True)
    assert path.exists()


def test_order_is_that_of_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"z": tensor(2, 4), "a": tensor(0, 2)}, b"\x00" * 4)
    assert [entry.name for entry in open_foreign(path).entries] == ["z", "a"]


def test_no_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    file = open_foreign(tmp_path / "empty.safetensors")
    assert file.tree == {}
    assert file.storages == []


REFUSED = {
    "gap": ({"a": tensor(0, 2), "b": tensor(3, 4)}, 4, "a gap before the tensor"),
    "gap at the start": ({"a": tensor(1, 2)}, 2, "a gap before"),
    "overlap": ({"a": tensor(0, 2), "b": tensor(1, 3)}, 3, "overlaps another"),
    "bytes and no tensor": ({}, 3, "3 bytes follow a header that names no tensor"),
    "size": ({"a": tensor(0, 2, shape=[3])}, 2, "do not fit dtype and shape"),
    "backwards": ({"a": tensor(0, 2) | {"data_offsets": [2, 0]}}, 2, "do not fit"),
    "huge shape": ({"a": tensor(0, 2, shape=[2**63, 2**63])}, 2, "do not fit"),
    "huge number": (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,2]}}', 2, "digits"),
    "negative": ({"a": tensor(0, 2) | {"data_offsets": [-2, 0]}}, 2, "wrong kind"),
    "true": ({"a": tensor(0, 1) | {"shape": [True]}}, 1, "wrong kind"),
    "fraction": (b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', 1, "not whole"),
    "infinity": (b'{"a":{"dtype":"U8","shape":[Infinity],"data_offsets":[0,1]}}', 1, "not whole"),
    "one key twice": (b'{"a":{},"a":{}}', 0, "one key twice"),
    "one field twice": (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0, "one key twice"),
    "fewer fields": ({"a": {"dtype": "U8"}}, 0, "not a dtype"),
    "not an object": ({"a": 5}, 0, "not a dtype"),
    "unknown dtype": ({"a": tensor(0, 1, dtype="X9")}, 1, "no type for the dtype 'X9'"),
    "half a byte": ({"a": tensor(0, 3, dtype="F6_E2M3", shape=[3])}, 3, "do not fit dtype and shape"),
    "bad metadata": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "bad json": (b"{nonsense", 0, "not valid JSON"),
    "not utf-8": (b'{"\xff":1}', 0, "not valid JSON"),
    "half a surrogate": (b'{"\\ud800":1}', 0, "not valid Unicode"),
    "deep": (b'{"a":' + b"[" * 200_000, 0, "not valid JSON"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(tmp_path: Path, name: str) -> None:
    header, size, message = REFUSED[name]
    with pytest.raises((DamagedError, UnsupportedStateError), match=message):
        open_foreign(write(tmp_path / "x.safetensors", header, bytes(size)))


def test_cut_data_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({f"t{i}": torch.ones(100) for i in range(8)}, path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1000])
    with pytest.raises(DamagedError, match=r"3 of 8 tensors are not whole: t5, t6, t7") as caught:
        open_foreign(path)
    assert caught.value.tensor == "t5"
    assert caught.value.next_step == f"fastckpt salvage {path}"


def test_cut_at_every_length_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(2)}, path)
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(FastckptError):
            open_foreign(path)


@pytest.mark.parametrize("shape", [b"2\x0c2", b"2 2", b"2\t\t2"])
def test_white_space_in_the_shape_of_a_damaged_header(tmp_path: Path, shape: bytes) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(222), "b": torch.ones(3)}, path)
    raw = path.read_bytes()
    assert raw.count(b"[222]") == 1
    path.write_bytes(raw.replace(b"[222]", b"[" + shape.ljust(3)[:3] + b"]").replace(b'"__', b'_"_', 1))
    report = fastckpt.verify(path)
    assert not report.ok
    assert fastckpt.salvage(path).exit_code
