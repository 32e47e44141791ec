"""A reshard that was killed is finished, or cleared away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from doctor_types import Doctor, Shell, contents

from fastckpt.nanochat.resharding import reshard

KILLED = """
import os, signal, sys
real, seen = os.rename, 0
def rename(source, target, **named):
    global seen
    seen += (".part" if {at} < 0 else ".ready/") in os.fspath(source)
    if seen > max({at}, 0):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target, **named)
os.rename = rename
from fastckpt.cli.main import main
main(["reshard", *sys.argv[1:]])
"""


def kill_reshard(directory: Path, ranks: int, at: int) -> None:
    """Kill it before the file number ``at`` goes to its name; before the commit if ``at`` is negative."""
    command = [sys.executable, "-c", KILLED.format(at=at), str(directory), "--step", "4", "--world-size", str(ranks)]
    assert subprocess.run(command, capture_output=True).returncode == -9


@pytest.mark.parametrize(("before", "after", "at"), [(4, 2, 0), (4, 2, 1), (2, 4, 0), (2, 4, 1), (2, 4, 3)])
def test_killed_after_its_commit(
    before: int, after: int, at: int, run_of, doctor: Doctor, shell: Shell, tmp_path: Path
):
    directory = run_of(4, world=before)
    other = run_of(4, world=before, tag="d2_other")
    reshard(other, step=4, world_size=after)
    kill_reshard(directory, after, at)
    told = doctor(directory)
    assert told.kinds == ["unfinished"]
    assert f"--world-size {after}" in told.the("unfinished")["next"]
    assert shell(told.the("unfinished")["next"]).returncode == 0
    assert doctor(directory).kinds == []
    assert contents(directory) == contents(other)


def test_killed_before_its_commit(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=4)
    before = contents(directory)
    kill_reshard(directory, 2, -1)
    told = doctor(directory)
    assert told.kinds == ["orphans"]
    assert shell(told.the("orphans")["next"]).returncode == 0
    assert doctor(directory).kinds == []
    assert contents(directory) == before
    assert not any(path.is_dir() for path in directory.iterdir())


def test_the_step_was_saved_anew_meanwhile(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=4)
    kill_reshard(directory, 2, 0)
    run_of(4, world=4)
    told = doctor(directory)
    assert told.kinds == ["orphans"]
    assert shell(told.the("orphans")["next"]).returncode == 0
    assert doctor(directory, "--deep").kinds == []


@pytest.mark.parametrize("text", ["", "[]", '{"old": 3, "remove": 4}', '{"remove": ["../../x", 5, null]}'])
def test_hostile_notes(text: str, run_of, doctor: Doctor):
    directory = run_of(4)
    left = directory / ".fckpt-step-000004.ready"
    left.mkdir()
    (left / "change.json").write_text(text)
    doctor(directory)
