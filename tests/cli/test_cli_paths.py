"""One rule for every command: a path that is not there is 5, what is no checkpoint is 4."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastckpt.cli.parsers import COMMANDS

TAKES: dict[str, list[list[str]]] = {
    "convert": [["convert", "PATH", "made.fckpt"], ["convert", "PATH"], ["convert", "PATH", "--step", "5"]],
    "inspect": [["inspect", "PATH"], ["inspect", "PATH", "--values", "w"]],
    "verify": [["verify", "PATH"]],
    "seal": [["seal", "PATH"], ["seal", "--check", "PATH"]],
    "repair": [["repair", "PATH"]],
    "diff": [["diff", "PATH", "PATH"], ["diff", "PATH", "PATH", "--steps", "1", "2"]],
    "salvage": [["salvage", "PATH"]],
    "doctor": [["doctor", "PATH"]],
    "run": [["run", "PATH"]],
    "reshard": [["reshard", "PATH", "--step", "5", "--world-size", "2"]],
    "prune": [["prune", "PATH", "--keep-last", "1"]],
    "backup": [["backup", "PATH", "copies"]],
    "sync": [["sync", "PATH", "s3://bucket/run"]],
    "plot": [["plot", "PATH"]],
}
WITHOUT = {"demo", "completion", "man"}
"""These read nothing that is there."""
OF_ANY_FILE = {"seal", "repair", "run"}
OF_DIRECTORIES = {"reshard", "prune", "backup", "sync"}


def calls(*but: set[str]) -> list[list[str]]:
    return [call for name, found in TAKES.items() if name not in set().union(*but) for call in found]


def put(call: list[str], path: str) -> list[str]:
    return [path if word == "PATH" else word for word in call]


def test_every_command_is_in_the_table() -> None:
    assert TAKES.keys() | WITHOUT == COMMANDS.keys()


@pytest.mark.parametrize("call", calls(), ids=" ".join)
def test_a_path_that_is_not_there_is_5(
    call: list[str], here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    for path in ("checkpoint_500.pt", "no/such/place", ""):
        ended = here(*put(call, path))
        assert ended.code == 5
        assert "Traceback" not in ended.err
    torch.save({}, "checkpoint_400.pt")
    if call[0] != "doctor":  # That shows what directories are near.
        told = here(*put(call, "checkpoint_500.pt"))
        assert (told.code, "checkpoint_400.pt" in told.err, ": not found. Next: did you mean" in told.err) == (
            5,
            True,
            True,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_400.pt"]


@pytest.mark.parametrize("call", calls(OF_ANY_FILE, OF_DIRECTORIES), ids=" ".join)
def test_what_is_no_checkpoint_is_4(
    call: list[str], here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.pt").write_text("A text, and no checkpoint. " * 99)
    Path("empty").mkdir()
    for path in ("notes.pt", "empty"):
        is_steps_of_file = path == "notes.pt" and ("--steps" in call or "--step" in call)
        assert here(*put(call, path)).code == (64 if is_steps_of_file else 4)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty", "notes.pt"]


@pytest.mark.parametrize("call", calls(TAKES.keys() - OF_DIRECTORIES), ids=" ".join)
def test_a_directory_without_steps_is_4_and_a_file_is_none(
    call: list[str], here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.pt").write_text("A text, and no checkpoint. " * 99)
    Path("empty").mkdir()
    assert here(*put(call, "empty")).code == 4
    ended = here(*put(call, "notes.pt"))
    assert (ended.code, "Not a directory" in ended.err) == (5, True)


@pytest.mark.parametrize("call", calls(OF_ANY_FILE, {"doctor"}), ids=" ".join)
def test_an_empty_directory_is_said_to_hold_nothing(
    call: list[str], here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    ended = here(*put(call, "empty"))
    assert "nanochat" not in ended.err
    told = "there is no checkpoint (file )?in this directory"
    assert re.search("this is a directory" if "--values" in call else told, ended.err)


@pytest.mark.parametrize("call", [["plot", "PATH"], ["prune", "PATH"], ["backup", "PATH", "copies"]], ids=" ".join)
def test_a_step_that_is_a_directory_names_the_one_above(
    call: list[str], here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run/step_500").mkdir(parents=True)
    torch.save({"w": torch.ones(3)}, "run/step_500/model.pt")
    ended = here(*put(call, "run/step_500/"))
    assert ended.code == 64
    assert f"this is one step. Next: fastckpt {call[0]} run" in ended.err
