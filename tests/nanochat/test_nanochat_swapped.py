"""Files that fastckpt itself saved, swapped or mixed: refused by every command, and never deleted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nanochat_builds import head_model, head_optimizer, meta_of
from nanochat_ranks import STEP, optim, write_ranks

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import MismatchError, UnsupportedStateError
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


@pytest.mark.sampled(4)
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


@pytest.mark.parametrize("replace", [False, True])
def test_a_meta_file_of_another_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, replace: bool) -> None:
    """Only the mark tells: as .pt the step would count as complete."""
    directory = save(tmp_path / "d4", 4, monkeypatch)
    with open(directory / "meta_000004.json", "a") as file:
        file.write(" ")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(MismatchError, match="not the one that was saved with the model"):
        fastckpt.convert(directory, to="pt", replace=replace)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert salvage_directory(directory).newest_whole is None


@pytest.mark.parametrize("name", ["w.fckpt", "model_000004.fckpt"])
def test_metadata_is_not_deleted(tmp_path: Path, name: str) -> None:
    """A .pt has no place for it."""
    fastckpt.save({"w": torch.ones(3)}, tmp_path / name, metadata={"run": 7, "nanochat_saved_as": "optim_000004_rank1"})
    with pytest.raises(UnsupportedStateError, match="run, nanochat_saved_as"):
        fastckpt.convert(tmp_path / name, to="pt", replace=True)
    if name.startswith("model"):
        (tmp_path / "meta_000004.json").write_text('{"step": 4}')
        fastckpt.save({"w": torch.ones(3)}, tmp_path / name, metadata={"run": 7})
        with pytest.raises(UnsupportedStateError, match="run"):
            fastckpt.convert(tmp_path, to="pt", replace=True)
    assert fastckpt.open(tmp_path / name).metadata["run"] == 7
    (done,) = fastckpt.convert(tmp_path / name, to="pt")
    assert "metadata (run" in done.notes[0]


@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_a_salvaged_step_is_never_complete(tmp_path: Path, suffix: str) -> None:
    """Nor does another format make it so."""
    for step in (1, 2):
        state = {0: {"step": step, "exp_avg": torch.full((8, 64), 1.0)}}
        optimizer = {"state": state, "param_groups": [{"lr": 1.0, "params": [0]}]}
        (tmp_path / f"meta_{step:06d}.json").write_text(f'{{"step": {step}}}')
        write = torch.save if suffix == "pt" else fastckpt.save
        write(optimizer, tmp_path / f"optim_{step:06d}_rank0.{suffix}")
        write({"lm_head.weight": torch.zeros(8, 64), "b": torch.ones(9000)}, tmp_path / f"model_{step:06d}.{suffix}")
    model = tmp_path / f"model_000002.{suffix}"
    raw = bytearray(model.read_bytes())
    raw[raw.index(bytes(torch.ones(99).numpy())) + 99] ^= 1
    model.write_bytes(raw)
    fastckpt.salvage(model, tmp_path / f"new.{suffix}", include=["partial", "damaged"])
    (tmp_path / f"new.{suffix}").replace(model)
    for to in (None, "fckpt", "pt", "fckpt"):
        if to is not None and not (tmp_path / f"model_000002.{to}").exists():
            done = fastckpt.convert(tmp_path, to=to)
            assert any("was salvaged" in note for each in done for note in each.notes)
            for old in tmp_path.glob("*_*." + {"pt": "fckpt", "fckpt": "pt"}[to]):
                old.unlink()
        assert find_last_step(tmp_path) == 1


def test_a_whole_step_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save(tmp_path / "d4", 4, monkeypatch)
    fastckpt.convert(directory, to="pt", replace=True)
    assert find_last_step(directory) == 4
    fastckpt.convert(directory, to="fckpt", replace=True)
    assert find_last_step(directory) == 4


def test_swapped_after_a_reshard_of_files_without_marks(tmp_path: Path) -> None:
    """They have neither a mark nor a torch zip's own name: reshard writes down what they are."""
    write_ranks(tmp_path / "d12", 4)
    fastckpt.convert(tmp_path / "d12", replace=True)
    reshard(tmp_path / "d12", step=STEP, world_size=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "d12").iterdir()}
    assert len(before) == 4
    swap(tmp_path / "d12", optim(0, "fckpt"), optim(1, "fckpt"))
    with pytest.raises(MismatchError, match="was saved as"):
        fastckpt.convert(tmp_path / "d12", replace=True)
    with pytest.raises(MismatchError, match="was saved as"):
        load_checkpoint(tmp_path / "d12", STEP, "cpu", load_optimizer=True)
    swap(tmp_path / "d12", optim(0, "fckpt"), optim(1, "fckpt"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "d12").iterdir()} == before
    fastckpt.convert(tmp_path / "d12", replace=True)
    assert find_last_step(tmp_path / "d12") == STEP


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("form", ["pt", "fckpt"])
def test_swapped_ranks_of_either_format(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, replace: bool
) -> None:
    """A mark tells it of those that fastckpt saved, the prefix that torch.save writes of the others."""
    directory = tmp_path / "d4"
    if form == "fckpt":
        save(directory, 4, monkeypatch)
    else:
        nanochat_ranks_as_torch_saves_them(directory)
    main(["doctor", str(directory), "--json"])
    assert '"swapped"' not in capsys.readouterr().out
    swap(directory, f"optim_000004_rank0.{form}", f"optim_000004_rank1.{form}")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert main(["doctor", str(directory), "--json"]) != 0
    assert '"swapped"' in capsys.readouterr().out
    to = "pt" if form == "fckpt" else "fckpt"
    for words in ([str(directory)], [str(directory), str(tmp_path / "out")]):
        assert main(["convert", *words, "--to", to, *["--replace"] * replace]) == 2
        assert "was saved as" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert not (tmp_path / "out").exists()


def nanochat_ranks_as_torch_saves_them(directory: Path) -> None:
    directory.mkdir()
    torch.save(head_model(), directory / "model_000004.pt")
    for rank in range(2):
        torch.save(head_optimizer(rank, 2, 4), directory / f"optim_000004_rank{rank}.pt")
    (directory / "meta_000004.json").write_text(json.dumps(meta_of(4)))
