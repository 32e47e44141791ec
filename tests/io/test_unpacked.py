"""The folder of an unpacked .pt is read as the archive it was; nothing proves it, and what is lost of it is said."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from states import assert_same

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import (
    CheckpointIOError,
    DamagedError,
    FastckptError,
    NotACheckpointError,
    OutOfSpaceError,
    UsageError,
)
from fastckpt.findings import Kind
from fastckpt.surveying.fates import Status
from fastckpt.verdicts import Verdict


def _state() -> dict[str, Any]:
    return {"w": torch.arange(1000.0), "odd": torch.ones(3, dtype=torch.uint8), "none": torch.empty(0), "step": 3}


def _unpack(state: object, path: Path) -> Path:
    """The folder that unpacking a .pt of a state leaves beside it."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(path.parent / "un packed")
    (folder,) = (path.parent / "un packed").iterdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _unpack(_state(), tmp_path / "my model.pt")


@pytest.fixture(params=["itself", "above", "without the top folder"])
def named(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    """The ways in which people have and name it."""
    if request.param == "without the top folder":
        return Path(shutil.copytree(folder, tmp_path / "flat"))
    (folder.parent / "__MACOSX").mkdir()
    return folder if request.param == "itself" else folder.parent


def test_it_is_read(named: Path, tmp_path: Path) -> None:
    assert_same(fastckpt.load(named), _state())
    assert_same(fastckpt.load(named, mmap=True), _state())
    assert {name for name, _ in fastckpt.stream(named)} == {"w", "odd", "none"}
    into = {"w": torch.zeros(1000), "odd": torch.zeros(3, dtype=torch.uint8), "none": torch.empty(0), "step": 0}
    fastckpt.load_into(into, named)
    assert torch.equal(into["w"], torch.arange(1000.0))
    fastckpt.convert(named, tmp_path / "a.safetensors")
    assert torch.equal(fastckpt.load(tmp_path / "a.safetensors")["w"], torch.arange(1000.0))


@pytest.mark.parametrize(
    "command", [["inspect"], ["verify"], ["convert"], ["salvage"], ["doctor"], ["plot", "--text"], ["diff"]]
)
def test_every_command_takes_it(
    command: list[str], named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(named), str(tmp_path / "my model.pt")] if command == ["diff"] else [str(named)]
    assert main([*command, *paths]) == 0
    assert "error" not in capsys.readouterr().err


def test_nothing_proves_it(named: Path) -> None:
    report = fastckpt.verify(named)
    assert report.verdict is Verdict.PRESENT
    assert report.verified == 0
    assert {finding.kind for finding in report.findings} == {Kind.UNPROVEN}
    assert "unpacked" in report.findings[0].message
    fates = fastckpt.salvage(named).tensors.values()
    assert {fate.status for fate in fates} == {Status.UNVERIFIED}


def test_a_state_without_tensors_is_not_called_intact(tmp_path: Path) -> None:
    assert fastckpt.verify(_unpack({"step": 3}, tmp_path / "a.pt")).verdict is Verdict.PRESENT


@pytest.mark.parametrize("value", [torch.ones(5), argparse.Namespace(a=torch.ones(3), b=Kind.TORN)])
def test_it_comes_back_as_the_pt_that_it_was(value: object, tmp_path: Path) -> None:
    folder = _unpack({"x": value, "y": [torch.ones(2) for _ in range(12)]}, tmp_path / "my model.pt")
    (done,) = fastckpt.convert(folder)
    assert done.destination == f"{folder}.fckpt"
    assert not done.exact
    assert not done.source_verified
    assert "folder" in " ".join(done.notes)
    fastckpt.convert(done.destination, tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "my model.pt").read_bytes()


def test_torchscript(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w

    torch.jit.script(Net()).save(tmp_path / "net.pt")  # type: ignore[no-untyped-call]
    with zipfile.ZipFile(tmp_path / "net.pt") as archive:
        archive.extractall(tmp_path / "out")
    assert [name for name, _ in fastckpt.stream(tmp_path / "out")] == ["w"]
    fastckpt.convert(tmp_path / "out", tmp_path / "net.fckpt")
    fastckpt.convert(tmp_path / "net.fckpt", tmp_path / "back.pt")
    assert torch.equal(torch.jit.load(tmp_path / "back.pt")(torch.ones(3)), torch.ones(3))  # type: ignore[no-untyped-call]


@pytest.mark.skipif(shutil.which("zip") is None, reason="the printed command needs zip")
def test_the_printed_command_packs_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    (command,) = [line for line in capsys.readouterr().out.splitlines() if "to pack it: " in line]
    subprocess.run(command.partition("to pack it: ")[2], shell=True, check=True, capture_output=True)
    packed = folder.with_name(folder.name + ".pt")
    assert fastckpt.verify(packed).findings == []
    assert_same(fastckpt.load(packed), _state())
    assert_same(torch.load(packed), _state())


# --- what is lost of it --------------------------------------------------------------


def _damage_missing(folder: Path) -> None:
    (folder / "data" / "0").unlink()


def _damage_cut(folder: Path) -> None:
    os.truncate(folder / "data" / "0", 100)


def _damage_grown(folder: Path) -> None:
    os.truncate(folder / "data" / "0", 5000)


def _damage_link(folder: Path) -> None:
    (folder / "data" / "0").rename(folder.parent.parent / "elsewhere")
    (folder / "data" / "0").symlink_to(folder.parent.parent / "elsewhere")


def _damage_pipe(folder: Path) -> None:
    (folder / "data" / "0").unlink()
    os.mkfifo(folder / "data" / "0")


@pytest.mark.parametrize("damage", [_damage_missing, _damage_cut, _damage_grown, _damage_link, _damage_pipe])
def test_what_is_lost_is_said(damage: Callable[[Path], None], folder: Path, tmp_path: Path) -> None:
    damage(folder)
    report = fastckpt.verify(folder)
    assert report.damaged_tensors == ["w"]
    assert report.exit_code == 2
    with pytest.raises(DamagedError) as caught:
        fastckpt.load(folder)
    assert caught.value.tensor == "w"
    salvaged = fastckpt.salvage(folder, tmp_path / "b.pt", include=["unverified"])
    assert sorted(salvaged.written) == ["none", "odd"]
    assert torch.equal(torch.load(tmp_path / "b.pt")["odd"], torch.ones(3, dtype=torch.uint8))


def test_without_its_pickle(folder: Path, tmp_path: Path) -> None:
    (folder / "data.pkl").unlink()
    assert fastckpt.verify(folder).exit_code == 2
    fastckpt.salvage(folder, tmp_path / "b.pt", like=tmp_path / "my model.pt", include=["unverified"])
    assert_same(torch.load(tmp_path / "b.pt"), _state())


def test_a_damaged_pickle(folder: Path) -> None:
    (folder / "data.pkl").write_bytes(b"\x80\x02}q\x00.")
    report = fastckpt.verify(folder)
    assert report.verdict in (None, Verdict.PRESENT)
    (folder / "data.pkl").write_bytes(b"\x80\x02}q")
    assert fastckpt.verify(folder).exit_code == 2


# --- what does no harm ---------------------------------------------------------------


def test_no_link_is_followed(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (folder / "data").rename(outside)
    (folder / "data").symlink_to(outside)
    assert fastckpt.verify(folder).damaged_tensors == ["w", "odd"]
    (folder / "data.pkl").rename(tmp_path / "pickle")
    (folder / "data.pkl").symlink_to(tmp_path / "pickle")
    with pytest.raises(NotACheckpointError):
        fastckpt.verify(folder)


def test_a_circle_of_links(folder: Path) -> None:
    (folder / "again").symlink_to(folder)
    report = fastckpt.verify(folder)
    assert [finding.message for finding in report.findings if finding.kind is not Kind.UNPROVEN] == [
        "again is a symbolic link, which is not followed"
    ]


def test_far_more_than_there_is_room_for(folder: Path) -> None:
    os.truncate(folder / "data" / "0", 2**42)
    with pytest.raises(OutOfSpaceError):
        fastckpt.load(folder)


def test_folders_in_folders(folder: Path) -> None:
    deep = folder
    for _ in range(60):
        deep = deep / "d"
        deep.mkdir()
    (deep / "file").write_bytes(b"x")
    assert any("deeper" in finding.message for finding in fastckpt.verify(folder).findings)


def test_names_that_are_no_text(folder: Path) -> None:
    (Path(os.fsdecode(b"%s/\xff" % os.fsencode(folder)))).write_bytes(b"x")
    assert any("\\udcff" in finding.message for finding in fastckpt.verify(folder).findings)
    assert_same(fastckpt.load(folder), _state())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / "data" / "0").chmod(0)
    with pytest.raises(CheckpointIOError, match="data/0"):
        fastckpt.verify(folder)


def test_it_is_never_deleted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        fastckpt.convert(folder, tmp_path / "a.fckpt", replace=True)
    assert_same(fastckpt.load(folder), _state())


def test_other_directories_are_none(tmp_path: Path) -> None:
    """A data set beside checkpoints, a project with a version: two records of torch's have to be there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data.pkl").write_bytes(b"\x80\x02}q\x00.")
    for name in ("a.pt", "b.pt"):
        torch.save(_state(), tmp_path / name)
    (tmp_path / "version").write_text("1.2.3")
    with pytest.raises(FastckptError, match="directory") as caught:
        fastckpt.load(tmp_path)
    assert isinstance(caught.value, UsageError | NotACheckpointError)
    assert main(["verify", str(tmp_path)]) == 0
