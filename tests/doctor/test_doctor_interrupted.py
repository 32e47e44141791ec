"""A save or reshard that was cut short: what is used instead, and how to clear away what it left."""

from __future__ import annotations

from pathlib import Path

import forked
import pytest
from doctor_types import Doctor, Shell, contents

from fastckpt import convert, load, save
from fastckpt.nanochat.resharding import reshard
from fastckpt.nanochat.step_change import keep_whole

KILLED = """
import os, signal, sys
real, seen = os.rename, 0
def rename(source, target, **named):
    global seen
    seen += ".part/" in os.fspath(source) or ({at} < 0 and ".fckpt-step" in os.fspath(target))
    if seen > max({at}, 0):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target, **named)
os.rename = rename
from fastckpt.cli.main import main
main(["reshard", *sys.argv[1:]])
"""


def kill_reshard(directory: Path, ranks: int, at: int) -> None:
    """Kill it before the file number ``at`` goes to its name; before the old step is kept if ``at`` is negative."""
    arguments = [str(directory), "--step", "4", "--world-size", str(ranks)]
    assert forked.run("-c", KILLED.format(at=at), *arguments).returncode == -9


@pytest.mark.parametrize(("before", "after", "at"), [(4, 2, 1), (2, 4, 1), (2, 4, 3)])
@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_killed_between_the_files(before: int, after: int, at: int, suffix: str, run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=before)
    if suffix == "fckpt":
        convert(directory, replace=True)
    whole = contents(directory)
    kill_reshard(directory, after, at)
    told = doctor(directory)
    assert set(told.kinds) == {"unfinished", "orphans"}
    for command in [one["next"] for one in told.facts["findings"]]:
        assert shell(command).returncode == 0
    assert doctor(directory).kinds == []
    assert contents(directory) == whole
    reshard(directory, step=4, world_size=after)
    assert doctor(directory, "--world-size", str(after)).kinds == []


@pytest.mark.parametrize("at", [-1, 0])
def test_killed_before_the_first_file(at: int, run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=4)
    before = contents(directory)
    kill_reshard(directory, 2, at)
    told = doctor(directory)
    assert set(told.kinds) == {"orphans"}
    for command in [one["next"] for one in told.facts["findings"]]:
        assert shell(command).returncode == 0
    assert doctor(directory).kinds == []
    assert contents(directory) == before
    assert not any(path.is_dir() for path in directory.iterdir())


def test_the_step_was_saved_anew_meanwhile(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=4)
    kill_reshard(directory, 2, 1)
    run_of(4, world=4)
    told = doctor(directory)
    assert set(told.kinds) == {"orphans"}
    for command in [one["next"] for one in told.facts["findings"]]:
        assert shell(command).returncode == 0
    assert doctor(directory, "--deep").kinds == []


def test_a_save_that_was_cut_short(run_of, doctor: Doctor, shell: Shell):
    """One rank of two has saved the step again: what is asked of it is answered from what it was before."""
    directory = run_of(4, world=2)
    convert(directory, replace=True)
    whole = contents(directory)
    keep_whole(str(directory), 4)
    save(load(directory / "optim_000004_rank0.fckpt"), directory / "optim_000004_rank0.fckpt")
    (directory / "model_000004.fckpt").unlink()
    told = doctor(directory, "--deep")
    assert told.kinds == ["unfinished"]
    assert shell(told.the("unfinished")["next"]).returncode == 0
    assert doctor(directory, "--deep").kinds == []
    assert contents(directory) == whole
