"""Ranks that save one step after the other, killed at any moment: the step found afterwards is always whole."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from nanochat_forker import Forker

from fastckpt.nanochat import find_last_step, load_checkpoint
from fastckpt.nanochat.completeness import newest_complete, state_at_names
from fastckpt.nanochat.steps import read_steps

MOMENTS = [8, pytest.param(20, marks=pytest.mark.thorough), pytest.param(200, marks=pytest.mark.slow)]


def saved(directory: Path, ranks: int) -> int:
    """The last save that every rank had finished; 0 if there is none."""
    paths = [directory / f"rank{rank}" for rank in range(ranks)]
    return min(int.from_bytes(path.read_bytes(), "little") if path.exists() else 0 for path in paths)


def wait_for_save(directory: Path, ranks: int, number: int) -> None:
    end = time.monotonic() + 30
    while saved(directory, ranks) < number:
        assert time.monotonic() < end, "the ranks do not get on"
        time.sleep(0.002)


def number_in(directory: Path, step: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Load a step on every rank, and tell the save by what it holds: all of it must be of one save."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    found = set()
    for rank in range(ranks):
        model, optimizer, meta = load_checkpoint(directory, step, "cpu", load_optimizer=True, rank=rank)
        found.add(meta["number"])
        for tensor in [*model.values(), *(state["exp_avg"] for state in optimizer["state"].values())]:
            found |= set(torch.unique(tensor).tolist())
        found |= {state["step"] for state in optimizer["state"].values()}
    assert len(found) == 1, f"step {step} is a mix of the saves {sorted(found)}"
    return int(found.pop())


def kill_all(forker: Forker, pids: list[int]) -> None:
    assert [os.WTERMSIG(status) for status in forker.kill(pids)] == [signal.SIGKILL] * len(pids)


def sweep_moments(forker: Forker, parent: Path, moments: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Kill at random moments of new steps; returns how many kills left something unfinished behind."""
    chance = random.Random(5)
    unfinished = 0
    first = 1
    directory = parent / "d4"
    directory.mkdir()
    for _ in range(moments):
        ranks = 2
        pids = forker.start("save_loop", directory, ranks, first=first, cycle=0)
        wait_for_save(directory, ranks, first)
        time.sleep(chance.uniform(0, 0.05))
        kill_all(forker, pids)
        expected = saved(directory, ranks)
        step = find_last_step(directory)
        # A save that every rank had finished is never passed over; the kill may have come just before it was said.
        assert step >= expected
        assert number_in(directory, step, ranks, monkeypatch) == step
        passed = newest_complete(directory, verify=False)[1]
        unfinished += bool(passed) or any(name.endswith(".fckpt-tmp") for name in os.listdir(directory))
        for older in [number for number in read_steps(str(directory)) if number < step]:
            for path in directory.glob(f"*_{older:06d}[_.]*"):
                path.unlink()
        # The run is taken up again, as after a resume: the steps that were passed over are saved anew.
        first = step + 1
    return unfinished


@pytest.mark.thorough
@pytest.mark.parametrize("moments", MOMENTS)
def test_killed_at_any_moment(forker: Forker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: int) -> None:
    assert sweep_moments(forker, tmp_path, moments, monkeypatch) > moments // 2


@pytest.mark.thorough
def test_killed_while_steps_are_saved_again(forker: Forker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps, saved again and again by three ranks that drift apart: every mix is told from a whole step."""
    chance = random.Random(6)
    states = set()
    found: dict[int, int] = {}
    for trial in range(8):
        first = 1 + 1000 * trial
        pids = forker.start("save_loop", tmp_path, 3, first=first, cycle=4)
        wait_for_save(tmp_path, 3, first + 5)
        time.sleep(chance.uniform(0, 0.03))
        kill_all(forker, pids)
        newest, _ = newest_complete(tmp_path, verify=True)
        for step in read_steps(str(tmp_path)).values():
            states |= {reason.partition(" ")[2] for reason in state_at_names(step, verify=False).reasons}
        if newest is not None:
            number = number_in(tmp_path, newest.step, 3, monkeypatch)
            assert number % 4 == newest.step
            # Ranks that are a cycle apart replace each other's files: then it is what it was before.
            assert number >= found.get(newest.step, 1)
            found[newest.step] = number
        assert newest is not None or not found, "there was something to go on from"
    assert any("is of another save than" in state for state in states), states


def test_one_rank_dies(forker: Forker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on: no step after that is complete, and none of them is found."""
    pids = forker.start("save_loop", tmp_path, 2, first=1, cycle=0)
    wait_for_save(tmp_path, 2, 3)
    os.kill(pids[1], signal.SIGKILL)
    last = int.from_bytes((tmp_path / "rank1").read_bytes(), "little")
    wait_for_save(tmp_path, 1, last + 5)
    os.kill(pids[0], signal.SIGKILL)
    forker.wait()
    last = int.from_bytes((tmp_path / "rank1").read_bytes(), "little")
    assert find_last_step(tmp_path) in (last, last + 1)
    assert number_in(tmp_path, last, 2, monkeypatch) == last
    newest, passed = newest_complete(tmp_path, verify=False)
    assert newest is not None
    assert len(passed) >= 3
    assert all(state.missing_ranks == (1,) for state in passed[:3])
    assert json.loads((tmp_path / f"meta_{newest.step:06d}.json").read_text()) == {
        "step": newest.step,
        "number": newest.step,
    }
