"""Every format nanochat has written comes back byte for byte, and loads as torch loads it."""

from __future__ import annotations

import math
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_builds import BUILDS
from nanochat_finders import contents

import fastckpt
from fastckpt.errors import UsageError

SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"
REAL = ("base_checkpoints/d4", "base_checkpoints/d4_w4", "legacy_2025_10_w4")


@pytest.fixture(params=[*BUILDS, *REAL])
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "d12"
    if request.param in BUILDS:
        BUILDS[request.param](directory)
    elif (SHARED / request.param).is_dir():
        shutil.copytree(SHARED / request.param, directory)
    else:
        pytest.skip("the real checkpoints are not beside the repository")
    return directory


def assert_same(ours: Any, theirs: Any, where: str = "state") -> None:
    assert type(ours) is type(theirs), where
    if isinstance(theirs, torch.Tensor):
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride()), where
        assert ours.requires_grad == theirs.requires_grad
        assert torch.equal(ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8)), where
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
        if isinstance(theirs, OrderedDict):
            assert_same(vars(ours), vars(theirs), f"{where}.__dict__")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{number}]")
    else:
        assert ours == theirs or (math.isnan(ours) and math.isnan(theirs)), where


@pytest.mark.sampled(4)
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_there_and_back_through_another_directory(original: Path, tmp_path: Path, codec: str) -> None:
    before = contents(original)
    there, back = tmp_path / "kept", tmp_path / "back" / "d12"
    done = fastckpt.convert(original, there, codec=codec, durable=False)
    assert contents(original) == before
    assert sorted(Path(item.destination).name for item in done) == sorted(path.name for path in there.iterdir())
    for item in done:
        assert item.exact
        if item.format != "meta":
            theirs = torch.load(item.source, weights_only=True)
            assert_same(fastckpt.load(item.destination), theirs)
    fastckpt.convert(there, back, durable=False)
    assert contents(back) == before


@pytest.mark.sampled(4)
def test_in_place_and_replaced(original: Path) -> None:
    before = contents(original)
    done = fastckpt.convert(original, replace=True)
    assert {Path(name).suffix for name in contents(original)} == {".fckpt", ".json"}
    assert len(done) == sum(name.endswith(".pt") for name in before)
    fastckpt.convert(original, replace=True)
    assert contents(original) == before


@pytest.mark.sampled(4)
def test_without_exactness(original: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "kept", tmp_path / "back" / "d12"
    fastckpt.convert(original, there, exact=False, durable=False)
    fastckpt.convert(there, back, durable=False)
    for name in contents(original):
        if name.endswith(".pt"):
            assert_same(torch.load(back / name), torch.load(original / name))
        else:
            assert (back / name).read_bytes() == (original / name).read_bytes()
    # Both are recognised as finished, though no byte-exact way back was kept.
    for done in (fastckpt.convert(original, there, exact=False), fastckpt.convert(there, back)):
        assert all("already" in item.notes[0] for item in done)


def test_models_to_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    directory = tmp_path / "d12"
    BUILDS["head"](directory)
    with pytest.raises(UsageError, match=r"convert it to \.fckpt first"):
        fastckpt.convert(directory, to="safetensors")
    fastckpt.convert(directory)
    (model,) = fastckpt.convert(directory, to="safetensors")
    assert any("optimizer" in note for note in model.notes)
    theirs = torch.load(directory / "model_000004.pt")
    ours = load_file(model.destination)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (again,) = fastckpt.convert(directory, to="safetensors")
    assert "already" in again.notes[0]
    with pytest.raises(UsageError, match="does not hold all"):
        fastckpt.convert(directory, to="safetensors", replace=True)
