"""What fastckpt writes as a .pt is what torch.save writes for the same state, byte for byte."""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from states import assert_same

import fastckpt
from fastckpt.foreign.torch_pickle import pickle_state
from fastckpt.foreign.torch_state import read_state
from fastckpt.foreign.write_torch import archive_name


def module() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(300, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))


def optimizer() -> dict[str, Any]:
    model = module()
    adam = torch.optim.AdamW(model.parameters())
    model(torch.ones(5, 300)).sum().backward()
    adam.step()
    return adam.state_dict()


def views() -> dict[str, Any]:
    whole = torch.arange(48.0).reshape(6, 8)
    return {"a": whole[:2], "b": whole.t(), "c": whole[3, ::2], "0": torch.tensor(1), "e": torch.empty(0, 3)}


def dtypes() -> dict[str, Any]:
    found = {v for v in vars(torch).values() if isinstance(v, torch.dtype)}
    skipped = {torch.bool} | {d for d in found if re.search(r"q|bits|int[1-7]$", str(d))}
    raw = torch.arange(48, dtype=torch.uint8)
    state = {str(dtype): raw.clone().view(dtype) for dtype in sorted(found - skipped, key=str)}
    return {**state, "torch.bool": torch.tensor([True, False])}


def plain() -> dict[Any, Any]:
    return {
        "ints": [0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, -(2**39), 2**39, 2**70, -(2**70), 1 << 3000],
        "texts": ["a", "", "ü世", "x" * 70_000, "a"],
        "bytes": [b"abc", b"\xff\x00", b"abc"],
        "numbers": [1.5, float("inf"), True, None, 1 + 2j],
        "torch": [torch.float32, torch.Size([1, 2]), torch.Size([]), torch.device("cuda", 1), torch.device("cpu")],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (1.0, 2.0), ("a", [1])],
        "lists": [[], [1], list(range(1000)), list(range(1001)), list(range(2001))],
        "dicts": [{}, {1: 2}, dict.fromkeys(range(1001)), OrderedDict.fromkeys(range(1001)), OrderedDict()],
        5: -7,
    }


STATES: dict[str, Callable[[], Any]] = {
    "module": lambda: module().state_dict(),
    "optimizer": optimizer,
    "both": lambda: {"model": module().state_dict(), "optimizer": optimizer(), "step": 3},
    "parameters": lambda: {
        "p": torch.nn.Parameter(torch.ones(3)),
        "q": torch.nn.Parameter(torch.ones(3), requires_grad=False),
        "r": torch.ones(3, requires_grad=True),
    },
    "views": views,
    "dtypes": dtypes,
    "lazy": lambda: {
        "a": torch.ones(3, dtype=torch.complex64).conj(),
        "b": torch.ones(2, dtype=torch.cfloat).conj().imag,
    },
    "plain": plain,
    "many": lambda: {f"t{i}": torch.full((1, 2, 1, 2), i) for i in range(300)},
    "bare": lambda: torch.arange(1000),
    "list": lambda: [torch.zeros(2), (torch.ones(2), None), {}],
    "empty": dict,
}


def pickle_in(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))


@pytest.mark.parametrize("name", STATES)
def test_the_pickle_is_the_same(tmp_path: Path, name: str) -> None:
    torch.save(STATES[name](), tmp_path / "x.pt")
    theirs = pickle_in(tmp_path / "x.pt")
    state, _ = read_state(theirs)
    assert state.opaque == []
    assert pickle_state(state.tree, state.entries, [storage.nbytes for storage in state.storages]) == theirs


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("name", STATES)
def test_the_file_is_the_same(tmp_path: Path, name: str, codec: str) -> None:
    state = STATES[name]()
    (tmp_path / "theirs").mkdir()
    torch.save(state, tmp_path / "theirs" / "model_000012.pt")
    fastckpt.save(state, tmp_path / "x.fckpt", codec=codec)
    (result,) = fastckpt.convert(tmp_path / "x.fckpt", tmp_path / "model_000012.pt")
    assert (result.format, result.exact, result.source_verified) == ("torch-zip", False, True)
    theirs, ours = tmp_path / "theirs" / "model_000012.pt", tmp_path / "model_000012.pt"
    assert ours.read_bytes() == theirs.read_bytes()
    safe = name != "plain"  # torch refuses an int of 380 bytes.
    assert_same(torch.load(ours, weights_only=safe), torch.load(theirs, weights_only=safe))
    assert fastckpt.verify(ours).ok


@pytest.mark.parametrize("name", ["model_000500.pt", "archive.pt", "世.pt", "a b.pt", "x", ".hidden.pt", "a.b.pt"])
def test_the_top_directory_is_named_as_torch_names_it(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / name)
    with zipfile.ZipFile(tmp_path / name) as archive:
        assert archive.namelist()[0] == f"{archive_name(tmp_path / name)}/data.pkl"


def test_two_element_types_on_one_storage(tmp_path: Path) -> None:
    """torch.save refuses it; what is written, torch.load reads."""
    whole = torch.arange(6, dtype=torch.int32)
    fastckpt.save({"a": whole, "b": whole.view(torch.float32)[2:]}, tmp_path / "x.fckpt")
    fastckpt.convert(tmp_path / "x.fckpt", tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert_same(loaded, {"a": whole, "b": whole.view(torch.float32)[2:]})
    assert loaded["a"].untyped_storage().data_ptr() == loaded["b"].untyped_storage().data_ptr()


def test_no_bytes_load_safely(tmp_path: Path) -> None:
    """torch.save writes a call for them that torch.load refuses unless it is told to trust the file."""
    fastckpt.save({"a": b"", "b": torch.ones(1)}, tmp_path / "x.fckpt")
    fastckpt.convert(tmp_path / "x.fckpt", tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["a"] == b""


def test_a_damaged_source_leaves_the_old_file(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.ones(300_000), "b": torch.ones(3)}, tmp_path / "x.fckpt")
    raw = bytearray((tmp_path / "x.fckpt").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "x.fckpt").write_bytes(raw)
    (tmp_path / "x.pt").write_bytes(b"old")
    with pytest.raises(fastckpt.errors.DamagedError, match="a"):
        fastckpt.convert(tmp_path / "x.fckpt", tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.fckpt", "x.pt"]
