"""A save or reshard that was cut short: what is used instead, and how to clear away what it left."""

from __future__ import annotations

import zipfile
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


@pytest.mark.sampled(3)
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


def rot(path: Path) -> None:
    """Change one byte of a tensor, in this name of the file only."""
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as archive:
            most = max(archive.infolist(), key=lambda record: record.file_size)
            at = data.find(archive.read(most)) + most.file_size // 2
    data[at] ^= 1
    path.unlink()
    path.write_bytes(data)


def cut_short(directory: Path, suffix: str) -> Path:
    """A save of step 4 that ended after the model went; what the step was before, hidden."""
    if suffix == "fckpt":
        convert(directory, replace=True)
    keep_whole(str(directory), 4)
    (directory / f"model_000004.{suffix}").unlink()
    return directory / ".fckpt-step-000004.before"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
@pytest.mark.parametrize("steps", [(4,), (2, 4)])
@pytest.mark.parametrize("name", ["model_000004", "optim_000004_rank0"])
def test_what_is_kept_is_damaged(name: str, steps: tuple[int, ...], suffix: str, run_of, doctor: Doctor, shell: Shell):
    """Nothing says that it is whole, and each command does what it is for, whichever is typed first."""
    directory = run_of(*steps, world=1)
    kept = cut_short(directory, suffix)
    assert not [one for one in doctor(directory).facts["findings"] if "is whole" in one["cause"] and one["step"] == 4]
    rot(kept / f"{name}.{suffix}")
    told = doctor(directory, "--deep")
    assert set(told.kinds) == {"rotted"}
    [unfinished] = [one for one in told.facts["findings"] if one["kind"] == "unfinished"]
    assert unfinished["next"] is None
    assert f"{name}.{suffix} in it is damaged" in unfinished["cause"]
    commands = [one["next"] for one in told.facts["findings"] if one["next"]]
    assert len(set(commands)) == 1
    shell(commands[0])
    after = doctor(directory, "--deep")
    if len(steps) > 1:
        assert after.kinds == []


@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_what_was_kept_goes_only_for_bytes_that_were_read(suffix: str, run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=2)
    if suffix == "fckpt":
        convert(directory, replace=True)
    whole = contents(directory)
    keep_whole(str(directory), 4)
    command = doctor(directory).the("orphans")["next"]
    rot(directory / f"optim_000004_rank1.{suffix}")
    kept = directory / ".fckpt-step-000004.before"
    assert shell(command).returncode != 0
    assert kept.is_dir()
    told = doctor(directory, "--deep")
    assert told.kinds == ["unfinished"]
    assert "is whole, in" in told.the("unfinished")["cause"]
    assert shell(told.the("unfinished")["next"]).returncode == 0
    assert contents(directory) == whole
    assert doctor(directory, "--deep").kinds == []


def test_both_are_damaged(run_of, doctor: Doctor):
    directory = run_of(4, world=2)
    keep_whole(str(directory), 4)
    rot(directory / "model_000004.pt")
    rot(directory / ".fckpt-step-000004.before" / "optim_000004_rank1.pt")
    told = doctor(directory, "--deep")
    assert "orphans" not in told.kinds
    assert not [one for one in told.facts["findings"] if "rm -r" in (one["next"] or "")]
