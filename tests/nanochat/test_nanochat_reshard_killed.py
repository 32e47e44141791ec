"""A reshard that is killed: nothing that nanochat would train on wrongly, and running it again finishes it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import forked
import pytest
import torch
from nanochat_finders import contents, find_last_step
from nanochat_ranks import STEP, V, optim, write_ranks

from fastckpt.errors import (
    CheckpointIOError,
    FastckptError,
    OutOfSpaceError,
    UsageError,
)
from fastckpt.io import space
from fastckpt.io.commit import Commit
from fastckpt.nanochat import reshard
from fastckpt.nanochat import step_change as staging
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.steps import read_steps

BEFORE, AFTER = 4, 2


def loads_on(directory: Path, ranks: int) -> bool:
    """Whether nanochat would train on this many ranks: each finds a file, and lm_head's rows are its share."""
    paths = [directory / optim(rank) for rank in range(ranks)]
    if not all(path.exists() for path in paths):
        return False
    states = [torch.load(path) for path in paths]
    return all(state["state"][0]["exp_avg"].shape[0] == V // ranks for state in states)


def run_killed(source: Path, work: Path, mode: str) -> int:
    script = Path(__file__).with_name("killed_reshard.py")
    done = forked.run(str(script), str(source), str(work), mode)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.thorough
def test_in_place(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "source", BEFORE)
    old, new = contents(source), contents(write_ranks(tmp_path / "expected", AFTER))
    kills = run_killed(source, tmp_path / "work", "in-place")
    assert kills >= 7, "the commit, two ranks in, two ranks out, and the rest"
    halfway = 0
    for number in range(kills):
        directory = tmp_path / "work" / str(number) / "d12"
        for ranks in (1, 2, 4, 8):
            if loads_on(directory, ranks):
                whole = old if ranks == BEFORE else new
                assert ranks in (BEFORE, AFTER)
                assert {name: (directory / name).read_bytes() for name in whole} == whole
        halfway += not loads_on(directory, BEFORE) and not loads_on(directory, AFTER)
        state = step_state(read_steps(str(directory))[STEP], verify=True)
        assert state.complete, state
        assert state.world_size in (BEFORE, AFTER)
        reshard(directory, step=STEP, world_size=AFTER)
        assert contents(directory) == new
        assert sorted(path.name for path in directory.iterdir()) == sorted(new)
    assert halfway, "some kills came between the files"


@pytest.mark.thorough
def test_elsewhere(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "source", BEFORE)
    old, new = contents(source), contents(write_ranks(tmp_path / "expected", AFTER))
    kills = run_killed(source, tmp_path / "work", "elsewhere")
    for number in range(kills):
        directory, target = tmp_path / "work" / str(number) / "d12", tmp_path / "work" / str(number) / "to"
        if find_last_step(target) is not None:
            assert contents(target) == new, "the model comes last"
        assert contents(directory) == old
        reshard(directory, target, step=STEP, world_size=AFTER)
        assert contents(target) == new
        assert sorted(path.name for path in target.iterdir()) == sorted(new)
        assert step_state(read_steps(str(target))[STEP], verify=True).complete


def test_another_number_after_the_kill(tmp_path: Path) -> None:
    """Killed at its very end, all is there: asked for the same again, that is said; another number is refused."""
    directory, target = write_ranks(tmp_path / "d12", BEFORE), tmp_path / "to"
    reshard(directory, target, step=STEP, world_size=AFTER)
    left = target / f".fckpt-step-{STEP:06d}.part"
    left.mkdir()
    with pytest.raises(UsageError, match="files of step 12 already"):
        reshard(directory, target, step=STEP, world_size=1)
    assert reshard(directory, target, step=STEP, world_size=AFTER).notes
    assert not left.exists()
    assert contents(target) == contents(write_ranks(tmp_path / "expected", AFTER))


@pytest.mark.thorough
def test_saved_anew_after_the_kill(tmp_path: Path) -> None:
    """Training came back to the step before the reshard was run again: what it saved counts."""
    source = write_ranks(tmp_path / "source", BEFORE)
    expected = contents(save_anew(tmp_path / "expected", AFTER))
    for number in range(run_killed(source, tmp_path / "work", "in-place")):
        directory = save_anew(tmp_path / "work" / str(number) / "d12", BEFORE)
        reshard(directory, step=STEP, world_size=AFTER)
        assert contents(directory) == expected


def save_anew(directory: Path, ranks: int) -> Path:
    """Other numbers than those of before; nanochat writes into the files that are there."""
    for path in write_ranks(directory, ranks).glob("optim_*"):
        state = torch.load(path)
        for values in state["state"].values():
            values.update({key: 2 * value for key, value in values.items() if key != "step"})
        torch.save(state, path)
    return directory


def test_one_at_a_time(tmp_path: Path) -> None:
    directory = write_ranks(tmp_path / "d12", BEFORE)
    before = contents(directory)
    with staging.stage(str(directory), STEP):
        with pytest.raises(CheckpointIOError, match="another process"):
            reshard(directory, step=STEP, world_size=AFTER)
        assert contents(directory) == before
    reshard(directory, step=STEP, world_size=AFTER)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked before anything is written: the new files, and one rank more on the way."""
    directory = write_ranks(tmp_path / "d12", BEFORE)
    size = sum(path.stat().st_size for path in directory.glob("optim*"))
    monkeypatch.setattr(space, "free_bytes", lambda fd: 2 * size)
    with pytest.raises(OutOfSpaceError):
        reshard(directory, tmp_path / "to", step=STEP, world_size=1)
    assert list((tmp_path / "to").iterdir()) == []
    monkeypatch.setattr(space, "free_bytes", lambda fd: 3 * size)
    reshard(directory, tmp_path / "to", step=STEP, world_size=1)


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, OutOfSpaceError), (errno.EIO, CheckpointIOError)])
def test_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[FastckptError]
) -> None:
    """The disk is full, or broken: an error with a type, and nothing is left of the new files."""
    directory = write_ranks(tmp_path / "d12", BEFORE)
    before = contents(directory)

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Commit, "write", fail)
    with pytest.raises(error):
        reshard(directory, step=STEP, world_size=AFTER)
    assert contents(directory) == before
    assert [path for path in directory.iterdir() if path.is_dir()] == []
