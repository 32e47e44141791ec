"""Storages without bytes are storages: what shares one shares it after a load too, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from states import assert_same

import fastckpt


@pytest.fixture
def state() -> dict[str, Any]:
    one, other = torch.empty(0, dtype=torch.float16), torch.empty(0, dtype=torch.float16)
    return {"shared": [one, one.view(0, 3), one.view(2, 0)], "same values": other, "more": torch.ones(2)[:0]}


@pytest.fixture(params=["zip", "legacy", "fckpt", "fckpt of a .pt", ".pt of a fckpt"])
def path(request: pytest.FixtureRequest, tmp_path: Path, state: dict[str, Any]) -> Path:
    """The state in a file of each format."""
    native, foreign = tmp_path / "s.fckpt", tmp_path / "s.pt"
    if "of" not in request.param:
        if request.param == "fckpt":
            fastckpt.save(state, native, durable=False)
            return native
        torch.save(state, foreign, _use_new_zipfile_serialization=request.param == "zip")
        return foreign
    source, destination = (foreign, native) if request.param == "fckpt of a .pt" else (native, foreign)
    torch.save(state, foreign) if source is foreign else fastckpt.save(state, native, durable=False)
    fastckpt.convert(source, destination, durable=False)
    return destination


@pytest.mark.parametrize("mmap", [False, True])
def test_sharing_is_kept(path: Path, state: dict[str, Any], mmap: bool) -> None:
    loaded = fastckpt.load(path, mmap=mmap)
    assert_same(loaded, state)
    cdata = [tensor.untyped_storage()._cdata for tensor in (*loaded["shared"], loaded["same values"])]
    assert len(set(cdata)) == 2


def test_they_are_whole_and_load_into_tensors(path: Path, state: dict[str, Any]) -> None:
    assert fastckpt.verify(path).ok
    fastckpt.load_into(state, path)
    assert dict(fastckpt.stream(path)).keys() == {"shared.0", "shared.1", "shared.2", "same values", "more"}
