"""`load(mmap=True)` of foreign files: the same state as reading it, mapped privately, CRCs checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import fastckpt
from fastckpt.errors import DamagedError


@pytest.fixture
def pt(tmp_path: Path) -> Path:
    shared = torch.arange(24.0)
    state = {
        "w": torch.randn(300, 70),
        "views": [shared[3:], shared.view(4, 6).t()],
        "empty": torch.empty(0),
        "c": torch.randn(5, dtype=torch.complex128),
        "step": 3,
    }
    torch.save(state, tmp_path / "state.pt")
    return tmp_path / "state.pt"


def test_mapped_equals_read(pt: Path) -> None:
    mapped, read = fastckpt.load(pt, mmap=True), fastckpt.load(pt)
    for a, b in ((mapped["w"], read["w"]), (mapped["c"], read["c"]), (mapped["views"][1], read["views"][1])):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    first, second = mapped["views"]
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert mapped["empty"].shape == (0,)
    assert mapped["step"] == 3


def test_mapped_is_private(pt: Path) -> None:
    before = pt.read_bytes()
    mapped = fastckpt.load(pt, mmap=True)
    mapped["w"].zero_()
    assert not mapped["w"].any()
    assert pt.read_bytes() == before


def test_mapped_is_checked(pt: Path) -> None:
    raw = bytearray(pt.read_bytes())
    raw[raw.index(fastckpt.load(pt)["w"].numpy().tobytes()) + 1000] ^= 1
    pt.write_bytes(raw)
    with pytest.raises(DamagedError) as caught:
        fastckpt.load(pt, mmap=True)
    assert caught.value.tensor == "w"
    assert fastckpt.load(pt, mmap=True, keys="c").keys() == {"c"}


def test_safetensors_mixes_mapped_and_read(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i + 1, 7).to(torch.bfloat16) for i in range(20)}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors")
    mapped = fastckpt.load(tmp_path / "m.safetensors", mmap=True)
    assert all(
        torch.equal(mapped[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in tensors.items()
    )
