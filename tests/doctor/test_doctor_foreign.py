"""Files of which doctor can only say what they are: of a newer version, of another program, of another name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from doctor_builds import model
from doctor_types import Doctor, Shell, contents
from forge import forge, put

import fastckpt


def script(path: Path) -> None:
    """An archive as torch.jit.save writes it, as far as its names go."""
    torch.save(model(4), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/constants.pkl", b"")
        archive.writestr(f"{path.stem}/code/__torch__.py", b"")


def test_a_program_in_place_of_the_model(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    script(directory / "model_000004.pt")
    told = doctor(".")
    assert told.kinds == ["unsupported"]
    assert "torch.jit.load" in told.the("unsupported")["cause"]
    assert "step 2 is whole" in told.the("unsupported")["cause"]
    assert shell(told.the("unsupported")["next"]).returncode == 0
    assert doctor(".").kinds == []


def test_a_program_and_no_other_step(run_of, doctor: Doctor, shell: Shell):
    """Nothing stands in for it: the command says once more what can be done with it, and touches nothing."""
    directory = run_of(4)
    script(directory / "model_000004.pt")
    before = contents(directory)
    done = shell(doctor(".").the("unsupported")["next"])
    assert done.returncode == 2
    assert "torch.jit.load" in done.stderr
    assert contents(directory) == before


def test_a_newer_version_asks_for_an_upgrade(run_of, tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    fastckpt.convert(directory / "model_000004.pt", directory / "model_000004.fckpt")
    (directory / "model_000004.pt").unlink()
    newer = put(16, "<H", 3)
    raw = forge((directory / "model_000004.fckpt").read_bytes(), superblock=newer, footer=newer)
    (directory / "model_000004.fckpt").write_bytes(raw)
    told = doctor(".")
    assert told.kinds == ["newer-version"]
    assert told.tag["newest_whole"] == 2
    program = tmp_path / "pip"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    command = told.the("newer-version")["next"]
    assert shell(f"PATH={tmp_path}:$PATH; {command}").stdout == "install --upgrade fastckpt\n"
    assert (directory / "model_000004.fckpt").read_bytes() == raw


def test_another_name_is_a_note_and_its_bytes_are_examined(tmp_path: Path, doctor: Doctor, shell: Shell, text):
    torch.save(model(4), tmp_path / "final weights.pt")
    told = doctor("final weights.pt")
    assert (told.code, told.kinds, told.notes) == (0, [], ["not-nanochat"])
    done = shell(told.the("not-nanochat")["next"])
    assert (done.returncode, "lm_head.weight" in done.stdout) == (0, True)
    assert text("final weights.pt").splitlines()[-1] == "nothing wrong; --deep would read every byte"
    assert text("final weights.pt", "--deep").splitlines()[-1] == "nothing wrong; every byte is as it was written"
