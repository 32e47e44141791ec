"""A file of the newest step that the system does not let be read: each command says so, and nothing good is lost."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_finders import contents

from fastckpt.cli.main import main
from fastckpt.errors import CheckpointIOError
from fastckpt.keeping.retention import Retention
from fastckpt.nanochat import find_last_step
from fastckpt.nanochat.checkpoints import save_checkpoint

ERRORS = [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE]
FILES = ["model_000003.fckpt", "optim_000003_rank0.fckpt", "meta_000003.json"]


def write(directory: Path, step: int) -> None:
    model = {f"transformer.h.{i}.attn.c_q.weight": torch.full((16, 64), float(step)) for i in range(2)}
    state = {0: {"step": step, "exp_avg": torch.full((16, 64), float(step))}}
    optimizer = {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}
    meta = {"step": step, "val_bpb": float(step), "model_config": {"n_layer": 2}}
    save_checkpoint(directory, step, model, optimizer, meta)


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        write(tmp_path / "d2", step)
    return tmp_path / "d2"


@pytest.fixture(params=ERRORS, ids=[errno.errorcode[error] for error in ERRORS])
def refused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Refuses every opening of a file of that name; gives the system's words for it."""
    error: int = request.param

    def refuse(name: str) -> str:
        def refusing(opened: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *arguments: Any, **named: Any) -> Any:
                if os.path.basename(str(path)) == name:
                    raise OSError(error, os.strerror(error), path)
                return opened(path, *arguments, **named)

            return call

        monkeypatch.setattr(os, "open", refusing(os.open))
        monkeypatch.setattr(builtins, "open", refusing(builtins.open))
        return os.strerror(error)

    yield refuse
    monkeypatch.undo()


COMMANDS: dict[str, tuple[list[str], int]] = {
    "prune": (["prune", "DIR", "--keep-last", "1"], 0),
    "backup": (["backup", "DIR", "OUT"], 1),
    "convert": (["convert", "DIR", "--to", "pt", "--replace"], 5),
    "convert to another place": (["convert", "DIR", "OUT", "--to", "pt", "--replace"], 5),
    "doctor": (["doctor", "DIR"], 1),
    "doctor --deep": (["doctor", "DIR", "--deep"], 1),
    "salvage": (["salvage", "DIR"], 3),
    "reshard": (["reshard", "DIR", "--step", "3", "--world-size", "2", "-o", "OUT"], 5),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_said_and_costs_nothing(
    command: str, name: str, steps: Path, refused: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(steps)
    words, code = COMMANDS[command]
    why = refused(name)
    places = {"DIR": str(steps), "OUT": str(steps.parent / "out")}
    assert main([places.get(word, word) for word in words]) == code
    told = capsys.readouterr()
    said = " ".join((told.out + told.err).split())
    assert why in said
    assert name in said or "cannot read the file" in said
    left = contents(steps)
    # Steps that can be read are converted, or pruned where a whole one is left.
    touched = {"prune": ("000001",), "convert": ("000001", "000002")}.get(command.split()[0], ())
    assert {file for file in before if file not in left} <= {
        file for file in before if any(number in file for number in touched)
    }
    assert all(left[file] == before[file] for file in before if "000003" in file)
    out = steps.parent / "out"
    copied = contents(out) if out.exists() else {}
    assert not any("000003" in file for file in copied)
    if command.startswith("convert"):
        there = {**left, **copied}
        assert {f"model_{step:06d}.pt" for step in (1, 2)} <= there.keys()
        assert not any(file.startswith("model_000003.pt") for file in there)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FILES)
def test_a_policy_keeps_it_and_a_whole_one(name: str, steps: Path, refused: Callable[[str], str]) -> None:
    why = refused(name)
    decisions = {decision.step: decision for decision in Retention(keep_last=1).apply(steps)}
    assert {step for step, decision in decisions.items() if decision.keep} == {2, 3}
    assert why in decisions[3].why


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FILES)
def test_the_newest_step_is_not_passed_over(name: str, steps: Path, refused: Callable[[str], str]) -> None:
    """Another rank could read it, and go on from it."""
    why = refused(name)
    with pytest.raises(CheckpointIOError, match=f"whether step 3 is complete cannot be told: .*{why}"):
        find_last_step(steps)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("error", ERRORS, ids=[errno.errorcode[error] for error in ERRORS])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_that_cannot_be_listed(
    command: str, error: int, steps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(steps)

    def refuse(listing: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".") -> Any:
            if str(path) == str(steps):
                raise OSError(error, os.strerror(error), path)
            return listing(path)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse(os.listdir))
        patch.setattr(os, "scandir", refuse(os.scandir))
        places = {"DIR": str(steps), "OUT": str(steps.parent / "out")}
        code = main([places.get(word, word) for word in COMMANDS[command][0]])
    told = capsys.readouterr()
    assert os.strerror(error) in told.out + told.err
    assert "no checkpoint" not in told.out + told.err, "nobody knows that"
    assert "unexpected" not in told.err
    assert code in (1, 5)
    assert contents(steps) == before
    assert not (steps.parent / "out").exists() or not list((steps.parent / "out").iterdir())
