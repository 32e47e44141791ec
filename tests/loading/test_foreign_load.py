"""load, load_into and keys on .pt and .safetensors files: what torch.load gives, without running anything."""

from __future__ import annotations

import contextlib
import zipfile
from collections import OrderedDict
from pathlib import Path
from string import Template
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, reject
from states import DTYPES, assert_same, assert_same_elements, everything, module, of_dtype, pattern, states

import fastckpt
from fastckpt.errors import DamagedError, TensorNotFoundError, UnsupportedStateError, UsageError

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
REAL_FILES = sorted(CHECKPOINTS.rglob("*.pt"))
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


@pytest.mark.skipif(not REAL_FILES, reason="the folder with real checkpoints is not there")
@pytest.mark.parametrize("path", REAL_FILES, ids=[f"{p.parent.name}/{p.name}" for p in REAL_FILES])
def test_real_files(path: Path) -> None:
    expected = torch.load(path, weights_only=False)
    assert_same(fastckpt.load(path), expected)
    assert_same(fastckpt.load(path, threads=1, verify=False), expected)
    assert fastckpt.verify(path).ok


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_everything(tmp_path: Path, legacy: bool) -> None:
    state = everything()
    state["views"].pop()  # torch saves no storage under two element types.
    if legacy:
        del state["dtypes"]  # Newer ones torch cannot read back from the older format.
    path = tmp_path / "m.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    loaded = fastckpt.load(path)
    assert_same(loaded, torch.load(path, weights_only=False))
    assert list(loaded) == list(state)


@given(state=states(python=False))
@example([torch.empty(0)] * 2)
def test_any_state(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "m.pt"
    try:
        torch.save(state, path)
    except RuntimeError:
        reject()  # One storage under two element types.
    assert_same(fastckpt.load(path), torch.load(path, weights_only=False), by_torch=True)


def test_safetensors(tmp_path: Path) -> None:
    state = {
        str(dtype): of_dtype(dtype, 24) for dtype in DTYPES if dtype.itemsize < 16 and "complex32" not in str(dtype)
    }
    state |= {
        "large": of_dtype(torch.float32, 300_000).view(300, -1),
        "empty": torch.empty(0, 3),
        "0d": torch.tensor(2),
    }
    safetensors.torch.save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt"})
    loaded = fastckpt.load(tmp_path / "m.safetensors")
    expected = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert set(loaded) == set(expected)
    for name, tensor in expected.items():
        assert_same_elements(loaded[name], tensor)


def test_any_suffix_and_mmap(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt.123"
    torch.save(module().state_dict(), path)
    assert_same(fastckpt.load(path, mmap=True), module().state_dict())


def test_repacked_with_the_pickle_last(tmp_path: Path) -> None:
    state = {"a": pattern(5000), "b": torch.arange(5)}
    torch.save(state, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as old, zipfile.ZipFile(tmp_path / "r.pt", "w") as new:
        new.writestr("m/README", "hello")
        for name in reversed(old.namelist()):
            new.writestr(name, old.read(name))
    assert_same(fastckpt.load(tmp_path / "r.pt"), state)
    assert fastckpt.verify(tmp_path / "r.pt").ok
    fastckpt.convert(tmp_path / "r.pt", tmp_path / "r.fckpt")
    fastckpt.convert(tmp_path / "r.fckpt", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "r.pt").read_bytes()


def test_keys_read_only_what_they_touch(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    model = OrderedDict(a=pattern(9000, 1), b=pattern(9000, 2))
    state = {"model": model, "opaque": Template("x"), "n": [torch.ones(2)]}
    torch.save(state, path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(model["b"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(raw)
    assert_same(fastckpt.load(path, keys=["n.*", "model.a"]), {"model.a": pattern(9000, 1), "n.0": torch.ones(2)})
    with pytest.raises(DamagedError, match=r"CRC-32 of record data/\d") as caught:
        fastckpt.load(path, keys="model.b")
    assert caught.value.tensor == "model.b"
    assert "fastckpt salvage" in str(caught.value)
    assert len(fastckpt.load(path, keys="model.b", verify=False)) == 1
    with pytest.raises(TensorNotFoundError, match="model"):
        fastckpt.load(path, keys="model.c")
    with pytest.raises(UnsupportedStateError, match=r"state\['opaque'\].*Template"):
        fastckpt.load(path)


def test_nothing_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"a": torch.ones(1), "b": Bomb()}, tmp_path / "m.pt")
    for action in (fastckpt.load, fastckpt.verify, fastckpt.convert):
        with contextlib.suppress(UnsupportedStateError):
            action(tmp_path / "m.pt")
    fastckpt.load(tmp_path / "m.fckpt", opaque="keep")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.fckpt", "m.pt"]


@pytest.mark.parametrize("name", ["m.pt", "l.pt", "m.safetensors"])
def test_cut_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "m.safetensors":
        safetensors.torch.save_file({"a": pattern(9000)}, path)
    else:
        torch.save({"a": pattern(9000)}, path, _use_new_zipfile_serialization=name == "m.pt")
    raw = path.read_bytes()
    for size in range(150, len(raw), 997):
        path.write_bytes(raw[:size])
        with pytest.raises(DamagedError, match="fastckpt salvage"):
            fastckpt.load(path)


def test_options(tmp_path: Path) -> None:
    torch.save({"a": pattern(9_000_000)}, tmp_path / "m.pt")
    seen: list[int] = []
    fastckpt.load(tmp_path / "m.pt", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 9_000_000
    with pytest.raises(UsageError):
        fastckpt.load(tmp_path / "m.pt", threads=0)
