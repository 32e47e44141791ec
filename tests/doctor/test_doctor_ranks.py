"""Optimizer files of the wrong rank, step, run, number of ranks or model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from doctor_builds import meta, model, optimizer, write_meta
from doctor_types import Doctor, Shell, contents

import fastckpt
import fastckpt.nanochat


def swap(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def save_own(directory: Path, step: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of several ranks in the own format."""
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in reversed(range(world)):
        fastckpt.nanochat.save_checkpoint(
            directory, step, model(step), optimizer(step, rank, world), meta(step) if not rank else None, rank=rank
        )
    monkeypatch.delenv("WORLD_SIZE")


@pytest.mark.parametrize("suffix", [".pt", ".fckpt"])
def test_swapped_ranks(suffix: str, run_of, doctor: Doctor, shell: Shell, monkeypatch: pytest.MonkeyPatch):
    directory = run_of(2, world=4)
    if suffix == ".pt":
        run_of(4, world=4)
    else:
        save_own(directory, 4, 4, monkeypatch)
    before = contents(directory)
    swap(directory / f"optim_000004_rank1{suffix}", directory / f"optim_000004_rank2{suffix}")
    told = doctor(".")
    assert told.kinds == ["swapped"]
    assert told.code == 1
    assert told.tag["newest_whole"] == 2
    assert told.tag["resume_step"] == 4
    assert shell(told.the("swapped")["next"]).returncode == 0
    assert contents(directory) == before
    assert doctor(".").kinds == []


def test_three_ranks_in_a_circle(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=4)
    before = contents(directory)
    swap(directory / "optim_000004_rank0.pt", directory / "optim_000004_rank1.pt")
    swap(directory / "optim_000004_rank1.pt", directory / "optim_000004_rank3.pt")
    assert shell(doctor(".").the("swapped")["next"]).returncode == 0
    assert contents(directory) == before


def test_the_same_rank_twice(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4, world=2)
    shutil.copy(directory / "optim_000004_rank0.pt", directory / "optim_000004_rank1.pt")
    told = doctor(".")
    assert told.the("swapped")["next"].endswith("mv -n -- optim_000004_rank1.pt damaged)")
    assert shell(told.the("swapped")["next"]).returncode == 0
    told = doctor(".")
    assert told.kinds == ["ranks-missing"]
    assert shell(told.the("ranks-missing")["next"]).returncode == 0
    assert doctor(".").tag["newest_whole"] == 2


def test_mixed_steps(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4, world=2)
    original = (directory / "optim_000002_rank1.pt").read_bytes()
    (directory / "optim_000002_rank1.pt").rename(directory / "optim_000004_rank1.pt")
    told = doctor(".")
    found = told.the("mixed-steps")
    assert "optim_000004_rank1.pt was saved as optim_000002_rank1" in found["what"]
    assert shell(found["next"]).returncode == 0
    assert (directory / "optim_000002_rank1.pt").read_bytes() == original
    assert doctor(directory / "model_000002.pt").kinds == []


def test_files_of_two_runs(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4, world=2)
    state = optimizer(4, 1, 2)
    state["param_groups"][0]["lr"] = 0.5
    torch.save(state, directory / "optim_000004_rank1.pt")
    told = doctor(".")
    assert "mixed-runs" in told.kinds
    assert shell(told.the("mixed-runs")["next"]).returncode == 0
    assert "mixed-runs" not in doctor(".").kinds


def test_an_optimizer_of_another_save(tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = tmp_path / "base_checkpoints" / "d2"
    fastckpt.nanochat.save_checkpoint(directory, 2, model(2), optimizer(2), meta(2))
    fastckpt.nanochat.save_checkpoint(directory, 4, model(99), optimizer(4), meta(4))
    other = (directory / "optim_000004_rank0.fckpt").read_bytes()
    fastckpt.nanochat.save_checkpoint(directory, 4, model(4), optimizer(4), meta(4))
    (directory / "optim_000004_rank0.fckpt").write_bytes(other)
    told = doctor(".")
    assert told.kinds == ["mixed-runs"]
    assert told.tag["newest_whole"] == 2
    assert shell(told.the("mixed-runs")["next"]).returncode == 0
    assert doctor(".").tag["newest_whole"] == 2


def test_a_missing_rank(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4, world=4)
    (directory / "optim_000004_rank2.pt").unlink()
    told = doctor(".")
    found = told.the("ranks-missing")
    assert "of rank 2 of 4 is missing" in found["what"]
    assert "step 2 is whole" in found["cause"]
    assert not found["loss"]
    assert shell(found["next"]).returncode == 0
    after = doctor(".")
    assert after.kinds == []
    assert shell(after.tag["resume"]).stdout == "resumed 'a run' at step 2 on 4\n"


@pytest.mark.parametrize("suffix", [".pt", ".fckpt"])
def test_a_missing_rank_of_the_only_step(
    suffix: str, run_of, tmp_path: Path, doctor: Doctor, shell: Shell, monkeypatch: pytest.MonkeyPatch
):
    directory = tmp_path / "base_checkpoints" / "d2"
    if suffix == ".pt":
        run_of(4, world=4)
    else:
        save_own(directory, 4, 4, monkeypatch)
    (directory / f"optim_000004_rank2{suffix}").unlink()
    told = doctor(".")
    found = told.the("ranks-missing")
    assert (told.code, found["loss"]) == (2, True)
    assert "without moments" in found["cause"]
    done = shell(found["next"])
    assert done.returncode == 0, done.stderr
    after = doctor(".")
    assert after.kinds == []
    assert after.tag["newest_whole"] == 4
    load = torch.load if suffix == ".pt" else fastckpt.load
    for rank in range(4):
        state = load(directory / f"optim_000004_rank{rank}{suffix}")
        assert state == {"state": {}, "param_groups": optimizer(4)["param_groups"]}


def test_no_optimizer_where_others_have_one(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    (directory / "optim_000004_rank0.pt").unlink()
    told = doctor(".")
    assert told.kinds == ["optimizer-missing"]
    assert told.tag["newest_whole"] == 2
    assert shell(told.the("optimizer-missing")["next"]).returncode == 0
    assert doctor(".").kinds == []


def test_no_model(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    (directory / "model_000004.pt").unlink()
    told = doctor(".")
    assert told.kinds == ["model-missing"]
    assert shell(told.the("model-missing")["next"]).returncode == 0
    assert doctor(".").tag["newest_whole"] == 2


def test_no_model_and_no_other_step(run_of, tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    home = tmp_path / "home" / "backup"
    home.mkdir(parents=True)
    (directory / "model_000004.pt").rename(home / "model_000004.pt")
    told = doctor(directory)
    assert told.code == 2
    found = shell(f"HOME={home.parent}; {told.the('model-missing')['next']}")
    assert found.stdout == f"{home}/model_000004.pt\n"


def test_another_number_of_ranks(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=4)
    assert doctor(".", "--world-size", 4).kinds == []
    told = doctor(".", "--world-size", 2)
    found = told.the("world-size")
    assert (told.code, found["severity"]) == (1, "bad")
    done = shell(found["next"])
    assert done.returncode == 0, done.stdout + done.stderr
    after = doctor(".", "--world-size", 2)
    assert after.kinds == []
    assert after.tag["resume"].startswith("torchrun --standalone --nproc_per_node=2 ")
    half = torch.load(directory / "optim_000004_rank1.pt")["state"][0]["exp_avg"]
    assert torch.equal(half, torch.cat([optimizer(4, rank, 4)["state"][0]["exp_avg"] for rank in (2, 3)]))


def test_counters_that_disagree(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    state = optimizer(4)
    state["state"][3]["step"] = 3
    torch.save(state, directory / "optim_000004_rank0.pt")
    told = doctor(".")
    assert told.kinds == ["counters"]
    assert "counts 3, 4" in told.the("counters")["what"]
    assert told.tag["newest_sound"] == 2
    assert shell(told.the("counters")["next"]).returncode == 0
    assert doctor(".").kinds == []


def test_counters_of_the_only_step(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    torch.save(optimizer(5), directory / "optim_000004_rank0.pt")
    told = doctor(".")
    assert told.kinds == ["counters"]
    assert shell(told.the("counters")["next"]).returncode == 0
    assert doctor(".").kinds == []
    assert torch.load(directory / "optim_000004_rank0.pt")["state"] == {}
    kept = torch.load(directory / "damaged" / "optim_000004_rank0.pt")
    assert torch.equal(kept["state"][0]["exp_avg"], optimizer(5)["state"][0]["exp_avg"])


@pytest.mark.parametrize("world", [1, 4])
def test_moments_that_were_begun_anew_are_no_fault(world: int, run_of, doctor: Doctor):
    """What doctor itself advises where a rank is lost; from then on AdamW counts fewer steps than the model."""
    directory = run_of(400, world=world)
    for rank in range(world):
        torch.save(optimizer(100, rank, world), directory / f"optim_000400_rank{rank}.pt")
    told = doctor(".")
    assert (told.code, told.kinds, told.notes) == (0, [], ["counters"])
    assert "begun anew at step 300" in told.the("counters")["cause"]
    torch.save(optimizer(99, 0, world), directory / "elsewhere.pt")
    (directory / "elsewhere.pt").rename(directory / "optim_000400_rank0.pt")
    assert doctor(".").kinds == ["counters"], "saved elsewhere: it may be of another run"


def test_a_misplaced_file_is_not_told_to_count_wrongly(run_of, doctor: Doctor, shell: Shell):
    """Its place is the fault: beginning its moments anew would be advice that loses them."""
    directory = run_of(3, 4)
    before = contents(directory)
    (directory / "optim_000004_rank0.pt").unlink()
    (directory / "optim_000003_rank0.pt").rename(directory / "optim_000004_rank0.pt")
    told = doctor(".")
    assert [one["kind"] for one in told.facts["findings"] if one["step"] == 4] == ["mixed-steps"]
    assert shell(told.the("mixed-steps")["next"]).returncode == 0
    after = contents(directory)
    assert after.items() <= before.items()
    assert doctor(".").tag["newest_whole"] == 3


@pytest.mark.sampled(3)
@pytest.mark.parametrize("suffix", [".pt", ".fckpt"])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_another_number_of_ranks_and_no_moments(
    world: int, suffix: str, tmp_path: Path, run_of, doctor: Doctor, shell: Shell, monkeypatch: pytest.MonkeyPatch
):
    """Nothing says how many ranks there were, and nothing needs to be divided: each gets a file with the groups."""
    directory = tmp_path / "base_checkpoints" / "d2"
    run_of(4, world=4) if suffix == ".pt" else save_own(directory, 4, 4, monkeypatch)
    (directory / f"optim_000004_rank1{suffix}").unlink()
    assert shell(doctor(".").the("ranks-missing")["next"]).returncode == 0
    told = doctor(".", "--world-size", world)
    done = shell(told.the("world-size")["next"])
    assert done.returncode == 0, done.stderr
    assert doctor(".", "--world-size", world).kinds == []
    load = torch.load if suffix == ".pt" else fastckpt.load
    files = sorted(directory.glob("optim*"))
    assert len(files) == world
    assert all(load(path) == {"state": {}, "param_groups": optimizer(4)["param_groups"]} for path in files)


def test_ranks_that_are_missing_come_before_another_number_of_ranks(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=4)
    (directory / "optim_000004_rank1.pt").unlink()
    assert doctor(".", "--world-size", 2).kinds == ["ranks-missing"]
    assert shell(doctor(".").the("ranks-missing")["next"]).returncode == 0
    assert shell(doctor(".", "--world-size", 2).the("world-size")["next"]).returncode == 0
    assert doctor(".", "--world-size", 2).kinds == []


def test_fine_tuning_goes_on_counting(run_of, doctor: Doctor):
    directory = run_of(700, source="chatsft_checkpoints")
    torch.save(optimizer(2000), directory / "optim_000700_rank0.pt")
    values = {key: value for key, value in meta(700).items() if key not in ("dataloader_state_dict", "loop_state")}
    write_meta(directory, 700, values)
    assert doctor(".").kinds == []


def test_a_step_that_was_renamed_as_a_whole(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    before = contents(directory)
    for path in list(directory.iterdir()):
        path.rename(directory / path.name.replace("000004", "000009"))
    told = doctor(".")
    assert "renamed" in told.notes
    assert shell(told.the("renamed")["next"]).returncode == 0
    assert contents(directory) == before
    assert doctor(".").notes == []


def test_an_optimizer_of_another_model(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4, world=2)
    for rank in range(2):
        torch.save(optimizer(4, rank, 2, width=32), directory / f"optim_000004_rank{rank}.pt")
    told = doctor(".")
    found = told.the("moments-shape")
    assert "lm_head.weight" in found["what"]
    assert "(32, 16)" in found["what"]
    assert told.tag["newest_sound"] == 2
    assert shell(found["next"]).returncode == 0
    assert doctor(".").kinds == []


def test_a_model_that_is_deeper_than_its_optimizer(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    torch.save(optimizer(4, layers=4), directory / "optim_000004_rank0.pt")
    told = doctor(".")
    assert "moments-shape" in told.kinds
    assert shell(told.the("moments-shape")["next"]).returncode == 0
    assert doctor(".").kinds == [], "the model is left, to be fine-tuned"


def test_files_that_the_rule_refuses_for_another_reason(tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = tmp_path / "base_checkpoints" / "d2"
    for step in (2, 4):
        fastckpt.nanochat.save_checkpoint(directory, step, model(step), optimizer(step), meta(step))
    path = directory / "meta_000004.json"
    path.write_text(json.dumps(meta(4) | {"val_bpb": 9.0}, indent=2))
    alone = tmp_path / "base_checkpoints" / "d2_alone"
    alone.mkdir()
    for name in directory.glob("*_000004*"):
        shutil.copy(name, alone)
    assert shell(doctor(alone).the("incomplete")["next"]).returncode == 0
    told = doctor(directory)
    assert told.kinds == ["incomplete"]
    assert "not the one that was saved" in told.the("incomplete")["what"]
    assert shell(told.the("incomplete")["next"]).returncode == 0
    assert doctor(directory).tag["newest_whole"] == 2
