"""A header laid out here is the one the safetensors library writes, 4-bit floats included."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import fastckpt


def test_same_bytes_as_the_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(7, dtype=torch.float64),
        "h": torch.randn(2, 2).to(torch.bfloat16),
        "z": torch.tensor([True, False]),
        "e": torch.empty(0, 4),
    }
    fastckpt.save(tensors, tmp_path / "s.fckpt")
    fastckpt.convert(tmp_path / "s.fckpt", tmp_path / "ours.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no 4-bit floats")
def test_four_bit_floats_keep_their_shape(tmp_path: Path) -> None:
    packed = torch.randint(0, 256, (3, 8), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    fastckpt.save({"w": packed}, tmp_path / "s.fckpt")
    fastckpt.convert(tmp_path / "s.fckpt", tmp_path / "s.safetensors")
    loaded = fastckpt.load(tmp_path / "s.safetensors")["w"]
    assert loaded.shape == (3, 8)
    assert torch.equal(loaded.view(torch.uint8), packed.view(torch.uint8))


BEFORE = {
    "none": b"",
    "space": b" ",
    "all": b"\n\t\r ",
    "long": b" " * 5000,
    "form feed": b"\f",
    "mark": b"\xef\xbb\xbf",
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_what_the_library_passes_over_is_no_damage(before: bytes, tmp_path: Path) -> None:
    path, own, back = tmp_path / "a.safetensors", tmp_path / "a.fckpt", tmp_path / "back.safetensors"
    header = before + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    try:
        expected = safetensors.torch.load_file(path)
    except safetensors.SafetensorError:
        with pytest.raises(fastckpt.errors.FastckptError):
            fastckpt.load(path)
        with pytest.raises(fastckpt.errors.FastckptError):
            fastckpt.convert(path, own)
        assert not fastckpt.salvage(path).complete
        return
    assert torch.equal(fastckpt.load(path)["a"], expected["a"])
    assert fastckpt.verify(path).ok
    assert fastckpt.salvage(path).exit_code == 0
    fastckpt.convert(path, own)
    fastckpt.convert(own, back)
    assert back.read_bytes() == path.read_bytes()
