"""Files of big-endian machines: the values are right in every command, and the way back gives the same bytes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from big_endian import write_big

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError, UnsupportedStateError

TYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.uint32,
    torch.float8_e5m2,
]


def some_state() -> dict[str, Any]:
    torch.manual_seed(5)
    state: dict[str, Any] = {
        str(dtype): torch.randint(0, 256, (n, 48), dtype=torch.uint8).view(-1).view(torch.uint8).clone()
        for n, dtype in enumerate(TYPES, 3)
    }
    state = {
        name: t.view(getattr(torch, name.removeprefix("torch."))) for name, t in state.items() if "bool" not in name
    }
    state["flags"] = torch.tensor([True, False])
    state["large"] = torch.arange(300_000, dtype=torch.float32)
    state["view"] = state["large"][7:99:3]
    state["step"] = 3
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(
            a.contiguous().view(torch.uint8), b.cpu().contiguous().view(torch.uint8)
        )
    return bool(a == b)


@pytest.fixture
def state() -> dict[str, Any]:
    return some_state()


@pytest.fixture
def big(tmp_path: Path, state: dict[str, Any]) -> Path:
    path = tmp_path / "big.pt"
    write_big(state, path)
    return path


def test_torch_reads_the_same_from_it(big: Path, state: dict[str, Any]) -> None:
    loaded = torch.load(big, weights_only=True)
    # Storages without a type of their own torch leaves as they are in the file, whatever machine wrote it.
    untyped = {"torch.uint16", "torch.uint32"}
    assert {name for name in state if not same(state[name], loaded[name])} == untyped


@pytest.mark.parametrize("mmap", [False, True])
def test_load(big: Path, state: dict[str, Any], mmap: bool) -> None:
    loaded = fastckpt.load(big, mmap=mmap)
    assert list(loaded) == list(state)
    assert all(same(state[name], loaded[name]) for name in state)
    only = fastckpt.load(big, keys="torch.complex*", mmap=mmap)
    assert len(only) == 2
    assert all(same(state[name], only[name]) for name in only)


def test_load_into_and_stream(big: Path, state: dict[str, Any]) -> None:
    into = {name: torch.zeros_like(value) for name, value in state.items() if isinstance(value, torch.Tensor)}
    fastckpt.load_into(into, big)
    assert all(same(state[name], into[name]) for name in into)
    ring = fastckpt.Ring(slots=2, slot_size=16384)
    streamed = dict(fastckpt.stream(big, ring=ring))
    assert streamed
    assert all(same(state[name], streamed[name]) for name in streamed)
    unproven = dict(fastckpt.stream(big, ring=ring, verify=False))
    assert all(same(state[name], unproven[name]) for name in unproven)


def test_there_and_back(big: Path, state: dict[str, Any], tmp_path: Path) -> None:
    for codec in ("none", "zstd"):
        fastckpt.convert(big, tmp_path / "own.fckpt", codec=codec)
        loaded = fastckpt.load(tmp_path / "own.fckpt")
        assert all(same(state[name], loaded[name]) for name in state)
        assert main(["diff", str(big), str(tmp_path / "own.fckpt")]) == 0
        fastckpt.convert(tmp_path / "own.fckpt", tmp_path / "back.pt")
        assert (tmp_path / "back.pt").read_bytes() == big.read_bytes()
    original = big.read_bytes()
    fastckpt.convert(big, tmp_path / "moved.fckpt", replace=True)
    assert not big.exists()
    fastckpt.convert(tmp_path / "moved.fckpt", big, replace=True)
    assert big.read_bytes() == original
    assert not (tmp_path / "moved.fckpt").exists()


def test_commands(big: Path, state: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    little = tmp_path / "little.pt"
    torch.save(state, little)
    assert main(["verify", str(big)]) == 0
    assert main(["inspect", str(big)]) == 0
    assert main(["diff", str(big), str(little)]) == 0
    assert main(["plot", str(big), "-o", str(tmp_path / "big.html")]) == 0
    other = dict(state, large=state["large"] + 1)
    torch.save(other, little)
    assert main(["diff", str(big), str(little)]) == 1


def test_damage_is_found(big: Path) -> None:
    raw = bytearray(big.read_bytes())
    raw[raw.index(torch.arange(5, dtype=torch.int32).to(torch.float32).numpy().byteswap().tobytes()) + 9] ^= 1
    big.write_bytes(raw)
    with pytest.raises(DamagedError, match="large"):
        fastckpt.load(big)
    assert main(["verify", str(big)]) == 2


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_a_cut_one_is_salvaged(big: Path, state: dict[str, Any], tmp_path: Path, share: float, suffix: str) -> None:
    raw = big.read_bytes()
    big.write_bytes(raw[: int(len(raw) * share)])
    rescued = tmp_path / f"rescued.{suffix}"
    report = fastckpt.salvage(big, rescued)
    assert any("big-endian" in note for note in report.notes)
    assert len(report.written) >= (len(TYPES) - 1 if share > 0.8 else 8)
    loaded = fastckpt.load(rescued)
    assert all(same(state[name], loaded[name]) for name in report.written)
    assert suffix != "pt" or all(same(state[name], torch.load(rescued)[name]) for name in report.written)


def test_filled_parts(big: Path, state: dict[str, Any], tmp_path: Path) -> None:
    raw = big.read_bytes()
    at = raw.index(state["large"][:5].numpy().byteswap().tobytes()) + 400_002
    big.write_bytes(raw[:at])
    fastckpt.salvage(big, tmp_path / "rescued.fckpt", include=["partial"])
    large = fastckpt.load(tmp_path / "rescued.fckpt")["large"]
    assert torch.equal(large[:100_000], state["large"][:100_000])
    assert large[100_000:].isnan().all()


def test_a_legacy_file_of_a_big_endian_machine(tmp_path: Path) -> None:
    state = {"a": torch.arange(100, dtype=torch.float64), "b": torch.arange(7, dtype=torch.int16)}
    path = tmp_path / "legacy.pt"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    at = raw.index(pickle.NEWTRUE, raw.index(b"little_endian"))
    path.write_bytes(raw[:at] + pickle.NEWFALSE + raw[at + 1 :])
    # torch turns the bytes round when it saves one, so they are little-endian in all of them.
    torch_says, ours = torch.load(path, weights_only=True), fastckpt.load(path)
    for name, tensor in state.items():
        assert torch.equal(torch_says[name], tensor)
        assert torch.equal(ours[name], tensor)
    fastckpt.convert(path, tmp_path / "own.fckpt")
    fastckpt.convert(tmp_path / "own.fckpt", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == path.read_bytes()


def test_one_storage_with_numbers_of_two_sizes_is_refused(tmp_path: Path) -> None:
    storage = torch.arange(16, dtype=torch.uint8).untyped_storage()
    a = torch.empty(0, dtype=torch.uint16).set_(storage, 0, (4,))
    b = torch.empty(0, dtype=torch.uint32).set_(storage, 2, (2,))
    path = tmp_path / "mixed.pt"
    write_big({"a": a, "b": b}, path)
    with pytest.raises(UnsupportedStateError, match="numbers of another size"):
        fastckpt.load(path)
