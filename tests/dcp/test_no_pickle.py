"""Nothing that is done with a set unpickles a byte of its files. For several ranks, `test_any_ranks` watches."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
import torch.distributed.checkpoint as torchs
import unpickling
from golden_sets import SETS

import fastckpt
import fastckpt.dcp
from fastckpt.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
STATE = {"w": torch.arange(6.0), "seen": {1, 2}, "lr": 0.5}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    from in_turn import save_in_turn

    save_in_turn(tmp_path / "step-7", SETS["fsdp2"].ranks())
    return tmp_path / "step-7"


COMMANDS = [
    "verify step-7",
    "inspect step-7",
    "doctor step-7",
    "convert step-7 whole.fckpt",
    "convert step-7 whole.pt",
    "convert step-7 model --shard-size 1MB",
    "diff step-7 step-7",
    "salvage step-7",
    "salvage step-7 -o saved.fckpt",
    "salvage step-7 -o saved.pt",
]


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(place: Path, command: str, damaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if damaged:
        (place / "shard-0001-00001.fckpt").unlink()
    monkeypatch.chdir(place.parent)
    with unpickling.watched() as found:
        main(command.split())
    assert found == []


def test_calls(place: Path) -> None:
    with unpickling.watched() as found:
        state = fastckpt.load(place)
        fastckpt.load_into(
            {"model": {name: torch.zeros_like(t) for name, t in state["model"].items()}}, place, strict=False
        )
        assert fastckpt.find_last_whole(place.parent) == str(place)
    assert found == []


@pytest.mark.parametrize("save", [fastckpt.dcp.save, lambda *a, **o: fastckpt.dcp.async_save(*a, **o).result()])
def test_one_process(save: Callable[..., object], tmp_path: Path) -> None:
    place = tmp_path / "step-7"
    with unpickling.watched(place) as found:
        save(STATE, place, no_dist=True)
        save(STATE, place, no_dist=True)
        state = {"w": torch.zeros(6), "seen": None, "lr": None}
        fastckpt.dcp.load(state, place, no_dist=True)
    assert found == []
    assert state["seen"] == {1, 2}


def test_the_hook_sees_what_it_should(tmp_path: Path) -> None:
    """Without this the tests above would prove nothing: it sees torch's own reader, and any other call."""
    torchs.save(STATE, storage_writer=torchs.FileSystemWriter(tmp_path / "theirs"), no_dist=True)
    with unpickling.watched(tmp_path / "theirs") as found:
        torchs.load(dict(STATE), storage_reader=torchs.FileSystemReader(tmp_path / "theirs"), no_dist=True)
    assert "torch.distributed.checkpoint.metadata.Metadata" in found
    with unpickling.watched() as found:
        pickle.loads(pickle.dumps(Path("x")))
    assert len(found) == 1
    pickle.loads(pickle.dumps(Path("x")))
    assert len(found) == 1


def test_the_hook_of_another_process_sees_it_too(tmp_path: Path) -> None:
    seen, content = str(tmp_path / "seen"), pickle.dumps(Path("x"))
    program = f"import pickle, unpickling; unpickling.watch_into({seen!r}); pickle.loads({content!r})"
    assert forked.run("-c", program).returncode == 0
    assert "PosixPath" in (tmp_path / "seen").read_text()
