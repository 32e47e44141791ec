"""What is not there, what was probably meant, and directories that nanochat takes for another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from doctor_builds import cut, model, write_meta
from doctor_types import Doctor, Shell
from nanochat_rules import find_largest_model, find_last_step

from fastckpt.nanochat.choosing import base_directory


def test_a_step_between_two(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4, 6)
    told = doctor(".", "--step", 5)
    found = told.the("missing-step")
    assert told.code == 4
    assert "the steps are 2, 4, 6" in found["what"]
    assert "4 before it and 6 after it" in found["cause"]
    assert shell(found["next"]).stdout == "resumed 'a run' at step 4 on 1\n"
    cut(directory / "model_000004.pt")
    found = doctor(".", "--step", 5).the("missing-step")
    assert "2 before it and 6 after it" in found["cause"]
    assert "--resume-from-step=6" in found["next"]


def test_a_step_beyond_the_last(run_of, doctor: Doctor, shell: Shell):
    run_of(2, 4)
    found = doctor(".", "--step", 1000).the("missing-step")
    assert "the closest whole step is 4 before it" in found["cause"]
    assert shell(found["next"]).stdout.endswith("at step 4 on 1\n")


def test_a_missing_step_of_fine_tuning(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, source="chatsft_checkpoints")
    (directory / "optim_000004_rank0.pt").unlink()
    found = doctor(directory, "--step", 5).the("missing-step")
    assert found["next"].endswith("--step 4")
    assert shell(found["next"]).returncode == 0


def test_a_step_that_is_there(run_of, doctor: Doctor):
    directory = run_of(2, 4)
    cut(directory / "model_000002.pt")
    assert doctor(".", "--step", 4).kinds == []
    assert doctor(".", "--step", 2).kinds == ["torn"]


@pytest.mark.parametrize(("wanted", "meant"), [("d3", "d2"), ("d21", "d20"), ("d100", "d20"), ("d2x", "d2")])
def test_a_tag(wanted: str, meant: str, run_of, doctor: Doctor, shell: Shell):
    run_of(2)
    run_of(2, tag="d20")
    told = doctor(".", "--tag", wanted)
    found = told.the("not-found")
    assert told.code == 4
    assert "base_checkpoints/d2, base_checkpoints/d20" in found["cause"]
    assert found["next"].endswith(f"/{meant}")
    if wanted == "d3":
        assert shell(found["next"]).returncode == 0


def test_a_step_that_only_one_tag_has(run_of, doctor: Doctor):
    run_of(2)
    run_of(4, tag="d4")
    told = doctor(".", "--step", 4)
    assert told.code == 0
    assert told.tag["tag"] == "base_checkpoints/d4"
    assert doctor(".", "--step", 3).code == 4


def test_one_tag_of_several(run_of, doctor: Doctor):
    run_of(2)
    cut(run_of(2, tag="d4") / "model_000002.pt")
    assert doctor(".", "--tag", "d2").kinds == []
    assert doctor(".", "--tag", "base_checkpoints/d4").kinds == ["torn"]


def test_a_directory_beside_the_right_one(run_of, doctor: Doctor, shell: Shell):
    run_of(2)
    run_of(2, tag="d26")
    for wrong in ("base_checkpoints/d27", "base_chekpoints/d26", "base_checkpoints/d26/model_000002.pth"):
        told = doctor(wrong)
        assert told.code == 5
        assert told.the("not-found")["next"] == "fastckpt doctor base_checkpoints/d26"
    assert shell("fastckpt doctor base_checkpoints/d26").returncode == 0


def test_nothing_anywhere(tmp_path: Path, doctor: Doctor, shell: Shell, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    told = doctor(tmp_path / "empty")
    assert (told.code, told.kinds) == (4, ["not-found"])
    home = tmp_path / "home"
    (home / "elsewhere").mkdir(parents=True)
    torch.save(model(4), home / "elsewhere" / "model_000004.pt")
    found = shell(f"HOME={home}; {told.the('not-found')['next']}")
    assert found.stdout == f"{home}/elsewhere/model_000004.pt\n"


def test_where_nanochat_keeps_them(run_of, tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    run_of(2)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert doctor().tag["tag"] == "base_checkpoints/d2"
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert base_directory() == str(tmp_path / ".cache" / "nanochat")


def test_directories_of_older_versions(run_of, tmp_path: Path, doctor: Doctor, shell: Shell):
    run_of(2)
    run_of(2, source="mid_checkpoints")
    run_of(2, source="sft_checkpoints")
    told = doctor(".")
    assert [tag["tag"] for tag in told.facts["tags"]] == [
        "base_checkpoints/d2",
        "mid_checkpoints/d2",
        "sft_checkpoints/d2",
    ]
    middle, fine = (one for one in told.facts["findings"] if one["kind"] == "old-directory")
    assert middle["next"] == "git checkout 1ddaad1~1"
    assert shell(fine["next"]).returncode == 0
    assert (tmp_path / "chatsft_checkpoints" / "d2" / "model_000002.pt").exists()
    assert [one["kind"] for one in doctor(".").facts["findings"]].count("old-directory") == 1


@pytest.mark.parametrize("name", ["d100.old", "d2_fastckpt"])
def test_a_directory_that_nanochat_takes_for_the_largest_model(name: str, run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2)
    (directory.parent / name).mkdir()
    told = doctor(".")
    assert told.kinds == ["taken-for-model"]
    assert shell(told.the("taken-for-model")["next"]).returncode == 0
    assert find_largest_model(directory.parent) == "d2"
    assert doctor(".").kinds == []


def test_a_file_that_nanochat_takes_for_the_newest_step(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    for name in (".tmp-model_000009.pt", "old_model_000009.pt", "a model_7.pt"):
        shutil.copy(directory / "model_000002.pt", directory / name)
    assert find_last_step(directory) == 9
    told = doctor(".")
    assert told.kinds == ["taken-for-step"]
    assert shell(told.the("taken-for-step")["next"]).returncode == 0
    assert find_last_step(directory) == 4
    assert doctor(".").kinds == []
    shutil.copy(directory / "model_000002.pt", directory / "old_model_000002.pt")
    assert doctor(".").kinds == [], "an older one is never taken"


def test_equal_depths_are_a_note(run_of, doctor: Doctor):
    run_of(2)
    run_of(2, tag="d2_again")
    told = doctor(".")
    assert (told.code, told.notes) == (0, ["same-depth"])


def test_names_with_spaces_quotes_and_dashes(tmp_path: Path, doctor: Doctor, shell: Shell):
    from doctor_builds import write_step

    directory = tmp_path / "-it's a run" / "d2 $(touch x)"
    for step in (2, 4):
        write_step(directory, step)
    cut(directory / "model_000004.pt")
    told = doctor("./-it's a run")
    assert shell(told.the("torn")["next"]).returncode == 0
    assert sorted(os.listdir(tmp_path)).count("x") == 0
    assert doctor("./-it's a run").tag["steps"] == [2]
    (directory / "optim_000002_rank0.pt").rename(directory / "optim_000002_rank1.pt")
    told = doctor("./-it's a run")
    assert shell(told.the("swapped")["next"]).returncode == 0
    assert doctor("./-it's a run").kinds == []


def test_a_resume_says_where_when_nanochat_would_look_elsewhere(
    run_of, tmp_path: Path, doctor: Doctor, shell: Shell, monkeypatch: pytest.MonkeyPatch
):
    run_of(2, source="other place/base_checkpoints", tag="my_run")
    resume = doctor("other place").tag["resume"]
    assert resume.startswith(f"NANOCHAT_BASE_DIR='{tmp_path}/other place' python -m scripts.base_train ")
    assert "--model-tag=my_run" in resume
    assert shell(resume).stdout == "resumed 'a run' at step 2 on 1\n"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "other place"))
    assert doctor("other place").tag["resume"].startswith("python -m scripts.base_train ")


def test_a_directory_that_was_renamed_resumes_from_where_it_is(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, tag="d2")
    values = json.loads((directory / "meta_000002.json").read_text())
    values["user_config"]["model_tag"] = "an_old_name"
    write_meta(directory, 2, values)
    resume = doctor(".").tag["resume"]
    assert "model-tag" not in resume
    assert shell(resume).stdout == "resumed 'a run' at step 2 on 1\n"
    directory.rename(directory.with_name("mine"))
    resume = doctor(".").tag["resume"]
    assert "--model-tag=mine" in resume
    assert shell(resume).stdout == "resumed 'a run' at step 2 on 1\n"


def test_of_many_steps_the_closest_are_named(tmp_path: Path, doctor: Doctor):
    directory = tmp_path / "base_checkpoints" / "d2"
    directory.mkdir(parents=True)
    for step in range(100, 40_100, 100):
        (directory / f"model_{step:06d}.pt").write_bytes(b"")
    what = doctor(".", "--step", 20_051).the("missing-step")["what"]
    assert what.endswith("there is no step 20051; there are 400 from 100 to 40000, the closest 20000 and 20100")


def test_of_several_that_are_not_alike_none_is_picked(run_of, tmp_path: Path, doctor: Doctor, shell: Shell):
    run_of(2, tag="d2")
    run_of(2, tag="d3")
    (tmp_path / "wrong").mkdir()
    command = doctor(tmp_path / "wrong").the("not-found")["next"]
    assert command == f"fastckpt doctor {tmp_path}"
    assert shell(command).returncode == 0
    assert doctor("base_checkpoints/d2_").the("not-found")["next"] == "fastckpt doctor base_checkpoints/d2"


def test_the_variable_is_no_cause_where_a_directory_was_named(doctor: Doctor, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "NANOCHAT_BASE_DIR" not in doctor(tmp_path / "empty").the("not-found")["cause"]
    assert "NANOCHAT_BASE_DIR" in doctor(base_directory()).the("not-found")["cause"]
