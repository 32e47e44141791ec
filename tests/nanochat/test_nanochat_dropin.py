"""nanochat's functions with fastckpt's files: what they write, what they give back, what a resume becomes."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_builds import BASE_META, BUILDS, head_model, head_optimizer, meta_of, write_head, write_step
from nanochat_finders import contents
from nanochat_trainer import MuonAdamW, new_model, resume, train
from states import assert_same

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import CheckpointNotFoundError, DamagedError, FastckptError, MismatchError, UsageError
from fastckpt.nanochat import load_checkpoint, load_optimizer_state, save_checkpoint

CHECKPOINTS = Path(__file__).parents[3] / "shared" / "checkpoints"


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)


def save_ranks(directory: Path, step: int, world: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """A save by all ranks, one after the other, as if each were a process; rank 0 is the last."""
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in reversed(range(world)):
        optimizer = head_optimizer(rank, world, step)
        model = more.get("model", head_model())
        save_checkpoint(directory, step, model, optimizer, meta_of(step, **BASE_META), rank=rank)


def test_the_files_and_their_content(tmp_path: Path) -> None:
    directory = tmp_path / "base_checkpoints" / "d12"
    model, optimizer, meta = head_model(), head_optimizer(), meta_of(500, **BASE_META)
    save_checkpoint(str(directory), 500, model, optimizer, meta)
    assert sorted(os.listdir(directory)) == ["meta_000500.json", "model_000500.fckpt", "optim_000500_rank0.fckpt"]
    assert (directory / "meta_000500.json").read_bytes() == json.dumps(meta, indent=2).encode()
    loaded = load_checkpoint(str(directory), 500, "cpu", load_optimizer=True, rank=0)
    assert_same(loaded, (model, optimizer, meta))
    assert loaded[2]["loop_state"]["min_val_bpb"] == math.inf
    assert load_checkpoint(directory, 500, torch.device("cpu"))[1] is None


def test_the_command_line_knows_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save_ranks(tmp_path, 4, 2, monkeypatch)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    (step,) = json.loads(capfd.readouterr().out)["steps"]
    assert [file["rank"] for file in step["optim"]] == [0, 1]
    assert (step["step"], step["notes"]) == (4, [])
    assert main(["convert", str(tmp_path)]) == 0
    assert_same(torch.load(tmp_path / "model_000004.pt"), head_model())
    assert_same(torch.load(tmp_path / "optim_000004_rank1.pt"), head_optimizer(1, 2))


def test_names_of_large_steps_and_of_ranks(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1234567, head_model(), head_optimizer(), meta_of(1234567))
    save_checkpoint(tmp_path, 1234567, head_model(), head_optimizer(), meta_of(1234567), rank=12)
    names = ["meta_1234567.json", "model_1234567.fckpt", "optim_1234567_rank0.fckpt", "optim_1234567_rank12.fckpt"]
    assert sorted(os.listdir(tmp_path)) == names


def test_without_optimizer_only_rank_0_writes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "rl", 60, head_model(), None, {"model_config": {}})
    save_checkpoint(tmp_path / "other", 60, head_model(), None, {"model_config": {}}, rank=1)
    assert sorted(os.listdir(tmp_path / "rl")) == ["meta_000060.json", "model_000060.fckpt"]
    assert not (tmp_path / "other").exists()
    assert load_checkpoint(tmp_path / "rl", 60, "cpu")[2] == {"model_config": {}}


def test_nothing_is_written_of_what_cannot_be_stored(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 4, head_model(), head_optimizer(), meta_of(4))
    before = contents(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, 4, head_model(), head_optimizer(step=5), {"step": {1, 2}})
    with pytest.raises(TypeError, match="cannot store an object of type"):
        save_checkpoint(tmp_path, 4, head_model(), {"state": object()}, meta_of(4))
    with pytest.raises(TypeError, match="cannot store an object of type"):
        save_checkpoint(tmp_path, 4, {"weight": object()}, head_optimizer(step=5), meta_of(4))
    assert contents(tmp_path) == before


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", BUILDS)
def test_loads_what_every_revision_wrote(name: str, tmp_path: Path) -> None:
    """From the ``.pt`` files and from those that were converted, the same as torch.load gives."""
    BUILDS[name](tmp_path)
    pt = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    steps = sorted({int(stem.split("_")[1]) for stem in pt})
    for convert in (False, True):
        if convert:
            fastckpt.convert(tmp_path, to="fckpt", replace=True)
            assert not list(tmp_path.glob("*.pt"))
        for step in steps:
            optimizers = [stem for stem in pt if stem.startswith(f"optim_{step:06d}")]
            meta = json.loads((tmp_path / f"meta_{step:06d}.json").read_text())
            for stem in optimizers or [None]:
                rank = int(stem.partition("_rank")[2] or 0) if stem else 0
                loaded = load_checkpoint(tmp_path, step, "cpu", load_optimizer=stem is not None, rank=rank)
                assert_same(loaded, (pt[f"model_{step:06d}"], pt[stem] if stem else None, meta))


@pytest.mark.skipif(not CHECKPOINTS.exists(), reason="the real checkpoints are not beside the repository")
@pytest.mark.parametrize("name", ["base_checkpoints/d4", "base_checkpoints/d4_w4", "legacy_2025_10_w4"])
def test_real_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nanochat saved comes back; saved by us it comes back; as .pt again it is what torch.load gave before."""
    source = CHECKPOINTS / name
    (model_path,) = source.glob("model_*.pt")
    step = int(model_path.stem.split("_")[1])
    optimizers = sorted(source.glob("optim_*.pt"))
    model, meta_bytes = torch.load(model_path), (source / f"meta_{step:06d}.json").read_bytes()
    meta = json.loads(meta_bytes)
    monkeypatch.setenv("WORLD_SIZE", str(len(optimizers)))
    for rank, path in enumerate(optimizers):
        optimizer = torch.load(path)
        assert_same(load_checkpoint(source, step, "cpu", True, rank), (model, optimizer, meta))
        save_checkpoint(tmp_path, step, model, optimizer, meta, rank=rank)
    assert (tmp_path / f"meta_{step:06d}.json").read_bytes() == meta_bytes
    for rank, path in enumerate(optimizers):
        assert_same(load_checkpoint(tmp_path, step, "cpu", True, rank), (model, torch.load(path), meta))
    fastckpt.convert(tmp_path, tmp_path / "back", to="pt")
    assert (tmp_path / "back" / f"meta_{step:06d}.json").read_bytes() == meta_bytes
    assert_same(torch.load(tmp_path / "back" / model_path.name), model)
    for rank, path in enumerate(optimizers):
        assert_same(torch.load(tmp_path / "back" / f"optim_{step:06d}_rank{rank}.pt"), torch.load(path))


# Resuming


def test_a_resume_is_that_from_the_pt(tmp_path: Path) -> None:
    """Three steps: every loss, parameter and moment bit for bit; the file that was mapped and trained on stays."""
    model = new_model()
    optimizer = MuonAdamW(model)
    list(train(model, optimizer, 0, 4))
    write_step(tmp_path / "pt", 4, model.state_dict(), {0: optimizer.state_dict()}, meta_of(4))
    save_checkpoint(tmp_path / "fckpt", 4, model.state_dict(), optimizer.state_dict(), meta_of(4))
    before = contents(tmp_path / "fckpt")
    runs = []
    stem = tmp_path / "pt"
    for loaded in (
        (torch.load(stem / "model_000004.pt"), torch.load(stem / "optim_000004_rank0.pt")),
        load_checkpoint(tmp_path / "fckpt", 4, torch.device("cpu"), load_optimizer=True)[:2],
        load_checkpoint(tmp_path / "pt", 4, torch.device("cpu"), load_optimizer=True)[:2],
    ):
        again, its_optimizer = resume(*loaded)
        losses = list(train(again, its_optimizer, 4, 3))
        runs.append((losses, again.state_dict(), its_optimizer.state_dict()))
    runs.append((list(train(model, optimizer, 4, 3)), model.state_dict(), optimizer.state_dict()))
    for run in runs[1:]:
        assert_same(run, runs[0])
    assert contents(tmp_path / "fckpt") == before
    assert not torch.equal(runs[0][1]["lm_head.weight"], torch.load(stem / "model_000004.pt")["lm_head.weight"])


def test_saving_over_a_step_that_is_trained_on(tmp_path: Path) -> None:
    """The parameters are mapped from the very file that is replaced: they stay as they are."""
    save_checkpoint(tmp_path, 4, head_model(), head_optimizer(), meta_of(4))
    model, optimizer, _ = load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True)
    expected = {name: tensor.clone() for name, tensor in model.items()}
    model["lm_head.weight"][0] += 1
    expected["lm_head.weight"][0] += 1
    save_checkpoint(tmp_path, 4, model, optimizer, meta_of(4))
    (tmp_path / "model_000004.fckpt").unlink()
    assert_same(dict(model), expected)


def test_a_save_that_fails_leaves_the_old_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 4, head_model(), head_optimizer(), meta_of(4))
    before = contents(tmp_path)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(fastckpt.errors.OutOfSpaceError):
        save_checkpoint(tmp_path, 4, head_model(), head_optimizer(step=9), meta_of(4))
    assert contents(tmp_path) == before


# What does not belong together is not loaded


def test_a_missing_step_or_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        load_checkpoint(tmp_path / "nowhere", 4, "cpu")
    write_head(tmp_path, 4)
    with pytest.raises(FileNotFoundError, match="no step 5: the steps here are 4"):
        load_checkpoint(tmp_path, 5, "cpu")
    with pytest.raises(CheckpointNotFoundError, match="no optim_000004_rank1") as caught:
        load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True, rank=1)
    assert caught.value.next_step == f"fastckpt doctor {tmp_path}"
    (tmp_path / "meta_000004.json").unlink()
    with pytest.raises(FileNotFoundError, match="no meta_000004"):
        load_checkpoint(tmp_path, 4, "cpu")
    (tmp_path / "model_000004.pt").unlink()
    with pytest.raises(FileNotFoundError, match="no model_000004"):
        load_checkpoint(tmp_path, 4, "cpu")


def test_damage_is_not_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 4, head_model(), head_optimizer(), meta_of(4))
    path = tmp_path / "optim_000004_rank0.fckpt"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    load_checkpoint(tmp_path, 4, "cpu")
    with pytest.raises(DamagedError):
        load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True)
    (tmp_path / "meta_000004.json").write_text('{"step": 4, "val')
    with pytest.raises(DamagedError, match="not whole JSON"):
        load_checkpoint(tmp_path, 4, "cpu")


def test_swapped_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_ranks(tmp_path, 4, 2, monkeypatch)
    first, second = (tmp_path / f"optim_000004_rank{rank}.fckpt" for rank in range(2))
    first.rename(tmp_path / "t")
    second.rename(first)
    (tmp_path / "t").rename(second)
    with pytest.raises(MismatchError, match="was saved as optim_000004_rank1"):
        load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True, rank=0)


def test_swapped_ranks_of_pt_files(tmp_path: Path) -> None:
    """They carry no mark, but the name they were saved under."""
    write_head(tmp_path, 4, world=2)
    first, second = (tmp_path / f"optim_000004_rank{rank}.pt" for rank in range(2))
    first.rename(tmp_path / "t")
    second.rename(first)
    with pytest.raises(MismatchError, match=r"optim_000004_rank0\.pt was saved as optim_000004_rank1"):
        load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True, rank=0)
    load_checkpoint(tmp_path, 4, "cpu")


def test_another_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nanochat takes such a file and fails at the first step, or trains on wrongly."""
    save_ranks(tmp_path, 4, 4, monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MismatchError, match="expected 2, found 4") as caught:
        load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True, rank=1)
    assert caught.value.next_step == f"fastckpt reshard {tmp_path} --step 4 --world-size 2"
    load_checkpoint(tmp_path, 4, "cpu")
    monkeypatch.delenv("WORLD_SIZE")
    shard = load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True, rank=3)[1]  # A tool reads what it asks for.
    assert_same(shard, head_optimizer(3, 4, 4))


def test_an_optimizer_of_another_save_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_ranks(tmp_path, 4, 2, monkeypatch)
    old = (tmp_path / "optim_000004_rank1.fckpt").read_bytes()
    other = head_model()
    other["resid_lambdas"][1] += 2**-20
    save_ranks(tmp_path, 4, 2, monkeypatch, model=other)
    load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True, rank=1)
    (tmp_path / "optim_000004_rank1.fckpt").write_bytes(old)
    with pytest.raises(MismatchError, match="not written by the save that wrote model_000004"):
        load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True, rank=1)
    load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True, rank=0)


def test_a_meta_file_of_another_save_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, 4, head_model(), None, meta_of(4))
    (tmp_path / "meta_000004.json").write_text(json.dumps(meta_of(4, val_bpb=1.0)))
    assert load_checkpoint(tmp_path, 4, "cpu")[2]["val_bpb"] == 1.0
    assert "not the one that was saved with the model" in caplog.text


# Both formats of a step side by side


def test_both_formats(tmp_path: Path) -> None:
    write_head(tmp_path, 4)
    fastckpt.convert(tmp_path, to="fckpt")
    expected = load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True)
    for stem in ("model_000004", "optim_000004_rank0"):
        (tmp_path / f"{stem}.pt").write_bytes(b"")
    assert_same(load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True), expected)


def test_a_damaged_fckpt_beside_a_whole_pt(tmp_path: Path) -> None:
    write_head(tmp_path, 4)
    expected = load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True)
    fastckpt.convert(tmp_path, to="fckpt")
    path = tmp_path / "optim_000004_rank0.fckpt"
    path.write_bytes(path.read_bytes()[:-5000])
    assert_same(load_checkpoint(tmp_path, 4, "cpu", load_optimizer=True), expected)


def test_a_save_cut_short_beside_an_older_pt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 of 2 had saved its part anew: nothing of that is mixed with the older files, on any rank."""
    write_head(tmp_path, 4, world=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    expected = [load_checkpoint(tmp_path, 4, "cpu", True, rank) for rank in range(2)]
    save_ranks(tmp_path, 4, 2, monkeypatch)
    (tmp_path / "optim_000004_rank1.fckpt").unlink()
    for cut in range(2):
        assert_same([load_checkpoint(tmp_path, 4, "cpu", True, rank) for rank in range(2)], expected)
        if not cut:
            (tmp_path / "model_000004.fckpt").unlink()


def test_a_converted_file_that_is_older_than_its_pt_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_head(tmp_path, 4)
    fastckpt.convert(tmp_path, to="fckpt")
    load_checkpoint(tmp_path, 4, "cpu")
    assert not caplog.text
    os.utime(tmp_path / "model_000004.pt", ns=(2**61, 2**61))
    load_checkpoint(tmp_path, 4, "cpu")
    assert "is newer than" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu(tmp_path: Path) -> None:
    """Saved from there and loaded to there; the mark is that of the same weights on the host."""
    model, optimizer = head_model(), head_optimizer()
    moved = type(model)((name, tensor.cuda()) for name, tensor in model.items())
    moved._metadata = model._metadata
    save_checkpoint(tmp_path / "gpu", 4, moved, optimizer, meta_of(4))
    save_checkpoint(tmp_path / "cpu", 4, model, optimizer, meta_of(4))
    assert contents(tmp_path / "gpu") == contents(tmp_path / "cpu")
    loaded, its_optimizer, _ = load_checkpoint(tmp_path / "gpu", 4, torch.device("cuda"), load_optimizer=True)
    assert {tensor.device.type for tensor in [*loaded.values(), its_optimizer["state"][0]["exp_avg"]]} == {"cuda"}
    assert_same({name: tensor.cpu() for name, tensor in loaded.items()}, dict(model))


# load_optimizer_state


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    return tmp_path


def test_load_optimizer_state(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    save_checkpoint(base / "base_checkpoints" / "d4", 4, head_model(), head_optimizer(), meta_of(4))
    save_checkpoint(base / "base_checkpoints" / "d12", 8, head_model(), head_optimizer(step=8), meta_of(8))
    save_checkpoint(base / "base_checkpoints" / "d12", 9, head_model(), None, meta_of(9))
    write_head(base / "chatsft_checkpoints" / "d4", 7)
    assert_same(load_optimizer_state("base", "cpu", 0, step=8), head_optimizer(step=8))
    assert_same(load_optimizer_state("base", torch.device("cpu"), rank=0, model_tag="d4"), head_optimizer())
    assert_same(load_optimizer_state("sft", "cpu", 0), head_optimizer(step=7))
    caplog.clear()
    assert load_optimizer_state("base", "cpu", 0) is None
    assert load_optimizer_state("base", "cpu", 3, model_tag="d4") is None
    assert load_optimizer_state("base", "cpu", 0, model_tag="d5", step=1) is None
    assert caplog.text.count("Optimizer checkpoint not found") == 3
    with pytest.raises(FileNotFoundError):
        load_optimizer_state("rl", "cpu", 0)
    with pytest.raises(UsageError, match="no stage 'ppo'"):
        load_optimizer_state("ppo", "cpu", 0)


def test_load_optimizer_state_checks_ranks_and_saves(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = base / "base_checkpoints" / "d4"
    save_ranks(tag, 4, 2, monkeypatch)
    assert_same(load_optimizer_state("base", "cpu", 1), head_optimizer(1, 2))
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(MismatchError, match="reshard"):
        load_optimizer_state("base", "cpu", 0)
    other = head_model()
    other["lm_head.weight"][0, 0] = 7
    monkeypatch.setenv("WORLD_SIZE", "2")
    save_checkpoint(tag, 4, other, head_optimizer(0, 2), meta_of(4), rank=0)
    assert_same(load_optimizer_state("base", "cpu", 1), head_optimizer(1, 2))
    shutil.rmtree(tag / ".fckpt-step-000004.before")  # Without what it was, it is a mix of two saves.
    with pytest.raises(FastckptError, match="not written by the save"):
        load_optimizer_state("base", "cpu", 1, step=4)
