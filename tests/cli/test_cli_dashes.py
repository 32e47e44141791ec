"""A path that begins with a dash is a path to every command, and to the commands that are printed."""

from __future__ import annotations

import os
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError

COMMANDS = [
    ["verify", "--", "-w.pt"],
    ["inspect", "--", "-w.pt"],
    ["salvage", "--", "-w.pt"],
    ["salvage", "--output=-out.fckpt", "--", "-w.pt"],
    ["convert", "--", "-w.pt"],
    ["convert", "--", "-w.pt", "-w.safetensors"],
    ["diff", "--", "-w.pt", "-w.pt"],
    ["doctor", "--", "-w.pt"],
    ["plot", "--", "-w.pt"],
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.arange(9000.0)}, "-w.pt")
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words))
def test_every_command_takes_it(words: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0, capsys.readouterr()


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_what_is_printed_runs(damage: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = bytearray(Path("-w.pt").read_bytes())
    raw[raw.index(torch.arange(9000.0).numpy().tobytes()) + 9] ^= 1
    Path("-w.pt").write_bytes(raw if damage == "flip" else raw[: raw.rfind(b"PK\x01\x02")])
    waiting, seen = ["fastckpt verify -- -w.pt"], 0
    while waiting and seen < 6:
        command = waiting.pop()
        words = shlex.split(command, comments=True)
        assert words[0] == "fastckpt", command
        assert main(words[1:]) in (0, 1, 2, 3), capsys.readouterr()
        seen += 1
        told = capsys.readouterr().out
        following = told.rpartition("next: ")[2].strip()
        waiting += [following] if following.startswith("fastckpt ") else []
    assert seen >= 2


def test_what_is_salvaged_has_the_name_of_the_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes its place in the end, and there the name inside says what a file was saved as."""
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.arange(9000.0)}, "model_000004.pt")
    raw = Path("model_000004.pt").read_bytes()
    Path("model_000004.pt").write_bytes(raw[: raw.rfind(b"PK\x01\x02")])
    report = fastckpt.salvage("model_000004.pt")
    words = shlex.split(report.next_step)
    assert main(words[1:]) == 1
    (written,) = [name for name in os.listdir() if ".salvaged" in name]
    with zipfile.ZipFile(written) as file:
        assert {name.partition("/")[0] for name in file.namelist()} == {"model_000004"}


def printed(told: Any) -> list[str]:
    """The words of the command that is told."""
    return shlex.split(str(told.next_step), comments=True)


@pytest.mark.parametrize("name", ["-w.pt", "-w.fckpt"])
def test_what_python_is_told_runs(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command line that has made the path a safe one."""
    if name.endswith(".fckpt"):
        fastckpt.save({"w": torch.arange(9000.0)}, name)
    raw = bytearray(Path(name).read_bytes())
    raw[raw.index(torch.arange(9000.0).numpy().tobytes()) + 9] ^= 1
    Path(name).write_bytes(raw)
    with pytest.raises(DamagedError) as caught:
        fastckpt.load(name)
    for words in (printed(caught.value), printed(fastckpt.verify(name))):
        assert words[:1] == ["fastckpt"], words
        assert f"./{name}" in words
        assert main(words[1:]) in (0, 1, 2, 3), capsys.readouterr()
    assert not any(word.startswith("-w") for word in printed(fastckpt.salvage(name)))
    report = fastckpt.salvage(name, "-out" + Path(name).suffix, include=["damaged"])
    assert not any(word.startswith("-out") for word in printed(report))
