"""No command writes over what it reads, under whatever name that is given as the destination."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt.cli.main import main

COMMANDS: dict[str, Callable[[str, str], list[str]]] = {
    "convert": lambda path, name: ["convert", path, name],
    "salvage": lambda path, name: ["salvage", path, "-o", name],
    "salvage --backfill": lambda path, name: ["salvage", f"{path}.other", "--backfill", path, "-o", name],
    "plot": lambda path, name: ["plot", path, "-o", name],
}


def symbolic_link(path: Path, name: Path) -> None:
    name.symlink_to(path.name)


@pytest.mark.parametrize("link", [os.link, symbolic_link])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, link: Callable[[Path, Path], None]
) -> None:
    path, name = tmp_path / "a.pt", tmp_path / ("b.html" if command == "plot" else "b.fckpt")
    torch.save({"w": torch.arange(6.0)}, path)
    torch.save({"w": torch.arange(6.0)}, f"{path}.other")
    link(path, name)
    before = path.read_bytes()
    assert main(COMMANDS[command](str(path), str(name))) == 64
    assert "the destination is the file itself that is read" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert name.samefile(path)


@pytest.mark.parametrize("command", [["backup"], ["reshard", "--step", "1", "--world-size", "2", "-o"]])
def test_a_directory_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    directory, name = tmp_path / "d4", tmp_path / "other"
    directory.mkdir()
    fastckpt.nanochat.save_checkpoint(str(directory), 1, {"w": torch.ones(2)}, None, {"step": 1})
    name.symlink_to(directory)
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    assert main([command[0], str(directory), *command[1:], str(name)]) == 64
    assert "the destination is the directory itself that is read" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
