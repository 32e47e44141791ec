"""Every suffix that a torch file has is one for every command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt.foreign.suffixes import TORCH_SUFFIXES
from fastckpt.salvaging.salvage import salvage


@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
def test_salvage_and_convert_write_it(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"x{suffix}"
    torch.save({"a": torch.arange(2000.0), "b": torch.arange(2000.0)}, source)
    source.write_bytes(source.read_bytes()[:-2000])
    assert f"x.salvaged{suffix}" in salvage(source).next_step
    salvage(source, tmp_path / f"y{suffix}")
    assert torch.load(tmp_path / f"y{suffix}")["a"].equal(torch.arange(2000.0))
    fastckpt.convert(tmp_path / f"y{suffix}", tmp_path / "y.fckpt")
    fastckpt.convert(tmp_path / "y.fckpt", tmp_path / f"z{suffix}")
    assert (tmp_path / f"z{suffix}").read_bytes() == (tmp_path / f"y{suffix}").read_bytes()
