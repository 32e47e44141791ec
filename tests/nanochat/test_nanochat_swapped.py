"""Files that fastckpt itself saved, swapped or mixed: refused by every command, and never deleted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from nanochat_builds import head_model, head_optimizer, meta_of

import fastckpt
from fastckpt.errors import MismatchError
from fastckpt.nanochat import backup, find_last_step, load_checkpoint, reshard, save_checkpoint
from fastckpt.salvaging.directory import salvage_directory

Mix = Callable[[Path, Path], object]


def save(directory: Path, step: int, monkeypatch: pytest.MonkeyPatch, *, seed: int = 0) -> Path:
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = head_model()
    model["resid_lambdas"] += seed
    for rank in range(2):
        save_checkpoint(directory, step, model, head_optimizer(rank, 2, step), meta_of(step), rank=rank)
    monkeypatch.delenv("WORLD_SIZE")
    return directory


def swap(directory: Path, one: str, other: str) -> None:
    (directory / one).rename(directory / "waiting")
    (directory / other).rename(directory / one)
    (directory / "waiting").rename(directory / other)


RANK = "optim_000004_rank{}.fckpt".format
MIXES: dict[str, Mix] = {
    "swapped ranks": lambda d, other: swap(d, RANK(0), RANK(1)),
    "a rank twice": lambda d, other: shutil.copy(d / RANK(1), d / RANK(0)),
    "a rank of another step": lambda d, other: shutil.copy(other / "optim_000005_rank1.fckpt", d / RANK(1)),
    "a model of another step": lambda d, other: shutil.copy(other / "model_000005.fckpt", d / "model_000004.fckpt"),
    "a model of another save": lambda d, other: shutil.copy(other / "model_000004.fckpt", d / "model_000004.fckpt"),
    "a rank of another save": lambda d, other: shutil.copy(other / RANK(1), d / RANK(1)),
    "a rank without a mark": lambda d, other: fastckpt.save(head_optimizer(1, 2, 4), d / RANK(1)),
    "a model in place of a rank": lambda d, other: shutil.copy(d / "model_000004.fckpt", d / RANK(0)),
}


@pytest.fixture(params=MIXES)
def mixed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = save(tmp_path / "d4", 4, monkeypatch)
    other = save(save(tmp_path / "other", 4, monkeypatch, seed=1), 5, monkeypatch, seed=2)
    MIXES[request.param](directory, other)
    return directory


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_convert_refuses(mixed: Path, tmp_path: Path, *, replace: bool, in_place: bool) -> None:
    before = {path.name: path.read_bytes() for path in mixed.iterdir()}
    with pytest.raises(MismatchError):
        fastckpt.convert(mixed, mixed if in_place else tmp_path / "out", to="pt", replace=replace)
    assert {path.name: path.read_bytes() for path in mixed.iterdir()} == before
    assert in_place or not (tmp_path / "out").exists()


def test_the_others_refuse(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        find_last_step(mixed)
    with pytest.raises(MismatchError):
        reshard(mixed, step=4, world_size=1)
    assert not backup(mixed, tmp_path / "copy").steps
    assert salvage_directory(mixed).newest_whole is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = 0
    for rank in range(2):
        try:
            load_checkpoint(mixed, 4, "cpu", load_optimizer=True, rank=rank)
        except MismatchError:
            refused += 1
    assert refused


def test_one_file_that_is_not_in_its_place_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save(tmp_path / "d4", 4, monkeypatch)
    swap(directory, RANK(0), RANK(1))
    with pytest.raises(MismatchError, match="was saved as optim_000004_rank1"):
        fastckpt.convert(directory / RANK(0), directory / "optim_000004_rank0.pt", replace=True)
    assert (directory / RANK(0)).exists()
    fastckpt.convert(directory / RANK(0), directory / "optim_000004_rank1.pt")


def test_a_whole_step_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save(tmp_path / "d4", 4, monkeypatch)
    fastckpt.convert(directory, to="pt", replace=True)
    assert find_last_step(directory) == 4
    fastckpt.convert(directory, to="fckpt", replace=True)
    assert find_last_step(directory) == 4
