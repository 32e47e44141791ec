"""Faults made in checkpoints that nanochat itself wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from doctor_builds import cut, flip
from doctor_types import Doctor, Shell, contents

import fastckpt


@pytest.fixture
def copy(real: Path, tmp_path: Path) -> Path:
    """The four ranks of a d4, as nanochat finds them."""
    shutil.copytree(real / "base_checkpoints" / "d4_w4", tmp_path / "base_checkpoints" / "d4_w4")
    return tmp_path / "base_checkpoints" / "d4_w4"


def test_whole(copy: Path, doctor: Doctor):
    told = doctor(".", "--deep", "--world-size", 4, "--depth", 4)
    assert (told.code, told.kinds, told.notes) == (0, [], ["meta-infinity"])
    assert told.tag["newest_whole"] == 4
    resume = told.tag["resume"]
    assert resume.startswith("torchrun --standalone --nproc_per_node=4 -m scripts.base_train -- ")
    assert "--resume-from-step=4" in resume
    assert "--model-tag=d4_w4" in resume
    assert "--fp8 " not in resume


def test_swapped_and_put_back(copy: Path, doctor: Doctor, shell: Shell):
    before = contents(copy)
    (copy / "optim_000004_rank0.pt").rename(copy / "x")
    (copy / "optim_000004_rank3.pt").rename(copy / "optim_000004_rank0.pt")
    (copy / "x").rename(copy / "optim_000004_rank3.pt")
    assert shell(doctor(".").the("swapped")["next"]).returncode == 0
    assert contents(copy) == before


def test_end_cut_off(copy: Path, doctor: Doctor, shell: Shell):
    before = torch.load(copy / "model_000004.pt")
    cut(copy / "model_000004.pt", 0.9999)
    found = doctor(".").the("torn")
    assert "35 of 35 tensors" in found["cause"]
    assert shell(found["next"]).returncode == 0
    assert doctor(".", "--deep").kinds == []
    after = torch.load(copy / "model_000004.pt")
    assert list(before) == list(after)
    assert all(
        torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
        for name in before
        if before[name].ndim
    )


def test_one_bit(copy: Path, doctor: Doctor, shell: Shell):
    flip(copy / "optim_000004_rank2.pt")
    told = doctor(".", "--deep")
    assert (told.code, told.kinds) == (2, ["rotted"])
    # Of a parameter nanochat needs both moments, or neither.
    assert "24 of 26 tensors" in told.the("rotted")["cause"]
    assert shell(told.the("rotted")["next"]).returncode == 0
    assert "rotted" not in doctor(".", "--deep").kinds


def test_two_ranks_instead_of_four(copy: Path, doctor: Doctor, shell: Shell):
    assert shell(doctor(".", "--world-size", 2).the("world-size")["next"]).returncode == 0
    assert doctor(".", "--world-size", 2, "--deep").kinds == []


def test_converted(copy: Path, doctor: Doctor):
    fastckpt.convert(copy, replace=True)
    told = doctor(".", "--deep", "--world-size", 4)
    assert told.kinds == []
    assert told.tag["examined"][0]["suffix"] == ".fckpt"
    assert " -m fastckpt run -m scripts.base_train -- " in told.tag["resume"]


def test_old_files_of_rank_0(real: Path, tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = tmp_path / "base_checkpoints" / "d4"
    shutil.copytree(real / "legacy_2025_10_w4", directory)
    assert doctor(".", "--deep").code == 0
    cut(directory / "optim_000002.pt")
    told = doctor(".")
    assert told.kinds == ["torn"]
    assert shell(told.the("torn")["next"]).returncode == 0
    told = doctor(".")
    assert [one["kind"] for one in told.facts["findings"] if one["loss"]] == ["salvaged"]
