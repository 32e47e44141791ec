"""Legacy ``.pt`` files whose pickles are damaged: what follows from the rest, and nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from salvage.support import equal, flat, make_state, overwrite, status

import fastckpt
from fastckpt.constants import LEAF_SIZE

ORIGINAL = flat(make_state())


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    torch.save(make_state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    return tmp_path / "old.pt"


def ends_of_pickles(path: Path) -> list[int]:
    """Where each of the five pickles ends."""

    class Reader(pickle.Unpickler):
        def persistent_load(self, pid: object) -> object:
            return None

        def find_class(self, module: str, name: str) -> object:
            return lambda *_: None

    ends = []
    with open(path, "rb") as file:
        for _ in range(5):
            Reader(file).load()
            ends.append(file.tell())
    return ends


def check(path: Path, tmp_path: Path, *, missing: int = 0, like: Path | None = None) -> object:
    """All tensors but a few come back, each as it was."""
    report = fastckpt.salvage(path, tmp_path / "out.pt", include=["unverified"], like=like)
    assert "intact" not in {status(report)[name] for name, tensor in ORIGINAL.items() if tensor.numel()}
    loaded = flat(torch.load(tmp_path / "out.pt", weights_only=True))
    assert len(loaded) == len(ORIGINAL) - missing
    assert all(equal(loaded[name], ORIGINAL[name]) for name in loaded)
    return report


@pytest.mark.parametrize("size", [1, 20, None])
def test_beginning_lost(legacy: Path, tmp_path: Path, size: int | None) -> None:
    """The object is found behind damaged pickles."""
    before_object = ends_of_pickles(legacy)[2]
    overwrite(legacy, 0, b"\xaa" * (size or before_object))
    report = check(legacy, tmp_path)
    assert report.format == "torch-legacy"
    assert any("magic number" in finding.message for finding in report.findings)


def test_list_of_storages_lost(legacy: Path, tmp_path: Path) -> None:
    """It is the sorted keys that the object names, and its length follows."""
    _, _, _, start, end = ends_of_pickles(legacy)
    overwrite(legacy, start, bytes(end - start))
    report = check(legacy, tmp_path)
    assert any("follows from the tensors" in finding.message for finding in report.findings)


def test_object_lost(legacy: Path, tmp_path: Path) -> None:
    """Sizes of another file tell which is which, where no two storages are of the same length."""
    like = tmp_path / "like.pt"
    state = make_state()
    state["wte"] = torch.zeros_like(state["wte"])
    torch.save(state, like, _use_new_zipfile_serialization=False)
    _, _, start, end, _ = ends_of_pickles(legacy)
    overwrite(legacy, start, b"\xaa" * (end - start))
    assert fastckpt.salvage(legacy).tensors == {}
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in ORIGINAL.values()}
    lengths = [tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in storages.values()]
    alike = {length for length in lengths if lengths.count(length) > 1}
    missing = sum(t.untyped_storage().nbytes() // t.element_size() in alike for t in ORIGINAL.values() if t.numel())
    assert 0 < missing < len(ORIGINAL) - 3
    report = check(legacy, tmp_path, missing=missing, like=like)
    assert report.structure == "like"
    lost = [fate for fate in report.tensors.values() if fate.status.value == "lost"]
    assert all("which is which" in fate.reason for fate in lost)
    # Cut, nothing says where the first one begins.
    legacy.write_bytes(legacy.read_bytes()[:-100])
    assert {fate.status.value for fate in fastckpt.salvage(legacy, like=like).tensors.values() if fate.nbytes} == {
        "lost"
    }


def test_everything_in_front_lost(legacy: Path, tmp_path: Path) -> None:
    """Nothing tells that it was a legacy file, but the file it is said to be like."""
    like = tmp_path / "like.pt"
    like.write_bytes(legacy.read_bytes())
    overwrite(legacy, 0, bytes(ends_of_pickles(legacy)[4]))
    report = fastckpt.salvage(legacy, tmp_path / "out.pt", include=["unverified"], like=like)
    assert report.format == "torch-legacy"
    loaded = flat(torch.load(tmp_path / "out.pt", weights_only=True))
    assert len(loaded) == 4
    assert all(equal(loaded[name], ORIGINAL[name]) for name in loaded)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_what_a_seal_proves_of_a_cut_file(tmp_path: Path, share: float) -> None:
    """Its pickles are as sealed, so each tensor in front of the last whole leaf is proven, wherever it was cut."""
    path = tmp_path / "old.pt"
    state = {f"w{n}": torch.randn(90 + 30 * n, 100) for n in range(12)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    fastckpt.seal(path, durable=False)
    for cut in range(int(share * len(raw)), int(share * len(raw)) + 40_000, 3_331):
        path.write_bytes(raw[:cut])
        report = fastckpt.salvage(path)
        for name, fate in report.tensors.items():
            assert fate.offset is not None
            whole = fate.offset + fate.nbytes <= cut // LEAF_SIZE * LEAF_SIZE
            assert (fate.status.value == "intact") == whole, (cut, name)
    # A flip in the pickles: names and shapes are not proven any more.
    path.write_bytes(bytes([*raw[:200], raw[200] ^ 1]) + raw[201:cut])
    assert fastckpt.salvage(path).counts["intact"] == 0
