"""Torn and rotted files: what stands, which step is whole, and the command that gets around it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from doctor_builds import cut, flip, meta, model, optimizer
from doctor_types import Doctor, Shell, contents

import fastckpt
import fastckpt.nanochat


def test_newest_save_cut(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4, 6)
    cut(directory / "model_000006.pt")
    told = doctor(".")
    assert told.code == 1
    found = told.the("torn")
    assert (found["severity"], found["step"], found["loss"]) == ("bad", 6, False)
    assert "12 of 21 tensors" in found["cause"]
    assert "step 4 is whole" in found["cause"]
    assert told.tag["newest_whole"] == 4
    assert shell(found["next"]).returncode == 0
    after = doctor(".")
    assert after.kinds == []
    assert after.tag["steps"] == [2, 4]
    assert {path.name[:5] for path in (directory / "damaged").iterdir()} == {"model", "meta_", "optim"}
    resumed = shell(told.tag["resume"])
    assert resumed.stdout == "resumed 'a run' at step 4 on 1\n", resumed.stderr


def test_all_of_it_comes_back(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, 6, world=2)
    before = torch.load(directory / "optim_000006_rank1.pt")
    for name in ("optim_000006_rank1.pt", "model_000006.pt"):
        cut(directory / name, 0.9995)
    told = doctor(".")
    assert told.kinds == ["torn", "torn"]
    commands = {one["next"] for one in told.facts["findings"] if one["kind"] == "torn"}
    assert len(commands) == 1, "one command mends both"
    assert told.tag["resume_step"] == 6
    done = shell(commands.pop())
    assert done.returncode == 0, done.stderr
    assert doctor(".", "--deep").kinds == []
    again = torch.load(directory / "optim_000006_rank1.pt")
    for key, held in before["state"].items():
        for name, value in held.items():
            same = torch.equal(value, again["state"][key][name]) if torch.is_tensor(value) else value == held[name]
            assert same, (key, name)
    assert shell(told.tag["resume"]).stdout == "resumed 'a run' at step 6 on 2\n"


def test_a_rotted_step_needs_every_byte_to_be_seen(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4, 6, world=2)
    flip(directory / "model_000004.pt")
    assert doctor(".").code == 0
    told = doctor(".", "--deep")
    found = told.the("rotted")
    assert (told.code, found["severity"], found["step"]) == (1, "warn", 4)
    assert "20 of 21" in found["cause"]
    assert told.tag["newest_whole"] == 6
    assert shell(found["next"]).returncode == 0
    assert doctor(".", "--deep").tag["steps"] == [2, 6]


def test_only_step_with_a_cut_optimizer(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    cut(directory / "optim_000004_rank0.pt")
    told = doctor(".")
    found = told.the("torn")
    assert (told.code, found["loss"]) == (2, True)
    assert shell(found["next"]).returncode == 0
    told = doctor(".")
    assert (told.code, told.kinds) == (2, ["salvaged"]), "nothing wrong would be said of moments that are lost"
    state = torch.load(directory / "optim_000004_rank0.pt")["state"]
    assert 0 < len(state) < len(optimizer(4)["state"])
    # Of a parameter all moments are there, or none.
    assert {tuple(held) for held in state.values()} <= {
        ("step", "exp_avg", "exp_avg_sq"),
        ("momentum_buffer", "second_momentum_buffer"),
    }
    resumed = shell(told.the("salvaged")["next"])
    assert resumed.returncode == 0, resumed.stderr


def test_only_step_with_a_cut_model(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    cut(directory / "model_000004.pt")
    told = doctor(".")
    assert told.code == 2
    done = shell(told.the("torn")["next"])
    assert done.returncode == 3, "a part came back"
    assert len(torch.load(directory / "model_000004.salvaged.pt")) == 12


def test_empty_file(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    (directory / "model_000004.pt").write_bytes(b"")
    told = doctor(directory)
    assert "is empty" in told.the("torn")["what"]
    assert shell(told.the("torn")["next"]).returncode == 0
    assert doctor(directory).kinds == []


def test_a_file_that_is_something_else(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    (directory / "model_000004.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    told = doctor(directory)
    found = told.the("not-a-checkpoint")
    assert "git-lfs" in found["what"]
    assert "git lfs pull" in found["cause"]
    assert shell(found["next"]).returncode == 0
    assert doctor(directory).tag["newest_whole"] == 2


def test_several_damaged_steps_are_one_finding(run_of, doctor: Doctor, shell: Shell, text):
    directory = run_of(2, 4, 6, 8)
    for step in (4, 6, 8):
        cut(directory / f"model_{step:06d}.pt")
    shown = text(directory)
    assert shown.count("bad ") == 1
    assert "the same at steps 6, 4" in shown
    commands = [one["next"] for one in doctor(directory).facts["findings"] if one["kind"] == "torn"]
    assert len(commands) == 3
    for command in commands:
        assert shell(command).returncode == 0
    assert doctor(directory).tag["steps"] == [2]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Steps as `fastckpt.nanochat.save_checkpoint` writes them."""
    directory = tmp_path / "base_checkpoints" / "d2"
    for step in (2, 4):
        fastckpt.nanochat.save_checkpoint(directory, step, model(step), optimizer(step), meta(step))
    return directory


def test_own_format_cut(own: Path, doctor: Doctor, shell: Shell):
    assert doctor(".").kinds == []
    cut(own / "model_000004.fckpt")
    told = doctor(".")
    found = told.the("torn")
    assert told.tag["newest_whole"] == 2
    assert shell(found["next"]).returncode == 0
    assert doctor(".").kinds == []
    assert told.tag["resume"].startswith("fastckpt run -m scripts.base_train -- ")
    resumed = shell(told.tag["resume"])
    assert resumed.stdout == "resumed 'a run' at step 2 on 1\n", resumed.stderr


def test_own_format_without_its_footer_is_mended(own: Path, doctor: Doctor, shell: Shell):
    before = fastckpt.load(own / "model_000004.fckpt")
    cut(own / "model_000004.fckpt", (own / "model_000004.fckpt").stat().st_size / (1 << 30))
    shutil.copy(own / "model_000002.fckpt", own / "keep")
    fastckpt.nanochat.save_checkpoint(own, 4, model(4), optimizer(4), meta(4))
    size = (own / "model_000004.fckpt").stat().st_size
    cut(own / "model_000004.fckpt", (size - 4096) / size)
    told = doctor(".")
    found = told.the("torn")
    assert "21 of 21" in found["cause"]
    assert shell(found["next"]).returncode == 0
    after = doctor(".", "--deep")
    assert after.kinds == []
    assert after.tag["newest_whole"] == 4
    again = fastckpt.load(own / "model_000004.fckpt")
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_own_format_rotted(own: Path, doctor: Doctor, shell: Shell):
    flip(own / "optim_000004_rank0.fckpt")
    told = doctor(".", "--deep")
    assert told.kinds == ["rotted"]
    assert shell(told.the("rotted")["next"]).returncode == 0
    assert doctor(".", "--deep").kinds == []


def test_a_damaged_copy_beside_a_whole_one(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    fastckpt.convert(directory)
    flip(directory / "model_000004.pt", 20_000)
    told = doctor(".", "--deep")
    assert told.kinds == ["damaged-copy"]
    assert told.tag["newest_whole"] == 4
    assert shell(told.the("damaged-copy")["next"]).returncode == 0
    assert doctor(".", "--deep").kinds == []
    assert not (directory / "model_000004.pt").exists()


def test_a_file_by_itself(tmp_path: Path, doctor: Doctor, shell: Shell):
    path = tmp_path / "my model.pt"
    torch.save(model(3), path)
    assert doctor(path).code == 0
    whole = contents(tmp_path)
    cut(path, 0.9995)
    told = doctor(path)
    assert (told.code, told.kinds) == (1, ["torn"])
    assert shell(told.the("torn")["next"]).returncode == 0
    assert doctor(path, "--deep").kinds == []
    state = torch.load(path)
    assert all(torch.equal(value, state[name]) for name, value in model(3).items())
    assert len(whole) == 1
    cut(path)
    told = doctor(path)
    assert told.code == 2
    assert shell(told.the("torn")["next"]).returncode == 3


def test_a_save_may_be_going_on(run_of, doctor: Doctor):
    directory = run_of(2, 4)
    cut(directory / "model_000004.pt")
    assert "still going on" in doctor(".").the("torn")["cause"]
    for path in directory.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert "still going on" not in doctor(".").the("torn")["cause"]


def test_a_file_of_a_step_stands_for_its_step(run_of, doctor: Doctor):
    directory = run_of(2, 4)
    cut(directory / "optim_000002_rank0.pt")
    told = doctor(directory / "model_000002.pt")
    assert told.kinds == ["torn"]
    assert doctor(directory / "model_000004.pt").kinds == []


def test_nothing_is_touched(run_of, doctor: Doctor):
    directory = run_of(2, 4, world=2)
    cut(directory / "model_000004.pt")
    flip(directory / "optim_000002_rank1.pt")
    before = contents(directory)
    doctor(".", "--deep", "--all")
    assert contents(directory) == before
    assert [path.name for path in directory.iterdir() if path.is_dir()] == []


def test_a_step_that_can_be_made_whole_comes_before_one_with_loss(run_of, doctor: Doctor, shell: Shell):
    """The newest is only mixed up; the older ones are damaged, and nobody needs to patch them together."""
    directory = run_of(2, 4, 6, world=2)
    cut(directory / "model_000002.pt")
    cut(directory / "model_000004.pt")
    swapped = [directory / f"optim_000006_rank{rank}.pt" for rank in (0, 1)]
    contents_of = [path.read_bytes() for path in swapped]
    for path, raw in zip(swapped, reversed(contents_of), strict=True):
        path.write_bytes(raw)
    meta = directory / "meta_000006.json"
    meta.write_bytes(meta.read_bytes().rstrip()[:-1])
    told = doctor(".")
    assert told.code == 1, "nothing is lost"
    assert told.tag["resume_step"] == 6
    assert "'--run=a run'" in told.tag["resume"]
    torn = [one for one in told.facts["findings"] if one["kind"] == "torn"]
    assert all("step 6 can be made whole" in one["cause"] and "salvage " not in one["next"] for one in torn)
    for one in told.facts["findings"]:
        if one["next"]:
            assert shell(one["next"]).returncode == 0
    assert doctor(".").kinds == []
    assert shell(told.tag["resume"]).stdout == "resumed 'a run' at step 6 on 2\n"
