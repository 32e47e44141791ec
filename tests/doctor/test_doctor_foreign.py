"""Files of which doctor can only say what they are: of a newer version, of another program, of another name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from doctor_builds import model
from doctor_types import Doctor, Shell, contents
from forge import forge, put

import fastckpt


def pack_again(path: Path) -> None:
    """A checkpoint that was packed again, in a way that neither torch nor fastckpt reads."""
    torch.save(model(4), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def test_a_file_that_cannot_be_read_in_place_of_the_model(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    pack_again(directory / "model_000004.pt")
    told = doctor(".")
    assert told.kinds == ["unsupported"]
    assert "zip -0" in told.the("unsupported")["cause"]
    assert "step 2 is whole" in told.the("unsupported")["cause"]
    assert shell(told.the("unsupported")["next"]).returncode == 0
    assert doctor(".").kinds == []


def test_a_file_that_cannot_be_read_and_no_other_step(run_of, doctor: Doctor, shell: Shell):
    """Nothing stands in for it: the command says once more what can be done with it, and touches nothing."""
    directory = run_of(4)
    pack_again(directory / "model_000004.pt")
    before = contents(directory)
    done = shell(doctor(".").the("unsupported")["next"])
    assert done.returncode == 2
    assert "zip -0" in done.stderr
    assert contents(directory) == before


def test_a_program_in_place_of_the_model(run_of, doctor: Doctor, shell: Shell):
    """It can be read, but nanochat cannot use it: what helps is said, and the command shows what is in it."""
    directory = run_of(4)
    with zipfile.ZipFile(directory / "model_000004.pt", "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/code/__torch__.py", b"")
    before = contents(directory)
    told = doctor(".").the("unsupported")
    assert "torch.jit.load" in told["cause"]
    done = shell(told["next"])
    assert done.returncode == 0
    assert "TorchScript" in done.stdout
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
    assert text("final weights.pt").splitlines()[-1] == (
        "nothing wrong; no NaN or infinity in the first 16.4 kB of each tensor; --deep would read every byte"
    )
    assert text("final weights.pt", "--deep").splitlines()[-1] == (
        "nothing wrong; no NaN or infinity in any tensor; every byte is as it was written"
    )


def test_every_byte_was_read_and_nothing_proves_it(tmp_path: Path, text):
    torch.save(model(4), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert (
        text("old.pt", "--deep")
        .splitlines()[-1]
        .endswith("every byte was read, and no checksum proves all of 1 of 1 files")
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
@pytest.mark.parametrize("stem", ["-o", "--json", "-rf $HOME 'a' \"b\"\n;exit 3"])
def test_named_like_an_option(stem: str, suffix: str, tmp_path: Path, doctor: Doctor, shell: Shell) -> None:
    """The command takes it for a file, and makes that whole."""
    path = tmp_path / f"{stem}.{suffix}"
    others = {each.name for each in tmp_path.iterdir()}
    (torch.save if suffix == "pt" else fastckpt.save)(model(4), path)
    path.write_bytes(path.read_bytes()[:-30])
    (found,) = [one for one in doctor(f"./{path.name}").facts["findings"] if one["severity"] == "bad"]
    done = shell(found["next"])
    assert done.returncode == 0, done.stderr
    assert {each.name for each in tmp_path.iterdir()} - others == {path.name, f"{path.name}.damaged"}
    assert doctor(f"./{path.name}").kinds == []
