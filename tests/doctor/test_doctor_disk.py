"""Room for the next saves, temp files of killed ones, and steps that could go."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import forked
import pytest
import torch
from doctor_types import Doctor, Shell
from slowness import within

import fastckpt
from fastckpt.doctor import disk, examination


def test_the_next_save(run_of, doctor: Doctor):
    run_of(2, 4)
    told = doctor(".")
    space = told.tag["space"]
    one_save = sum(path.stat().st_size for path in Path("base_checkpoints/d2").glob("*_000004*.pt"))
    assert space["next_save"] == one_save
    assert space["saves"] == space["free"] // one_save
    assert told.facts["free"] == pytest.approx(space["free"], rel=0.1)


@pytest.mark.parametrize(("room", "severity"), [(0.5, "bad"), (2.5, "warn")])
def test_too_little_room(
    room: float, severity: str, run_of, doctor: Doctor, shell: Shell, monkeypatch: pytest.MonkeyPatch
):
    directory = run_of(2, 4, 6)
    save = doctor(".").tag["space"]["next_save"]
    used = sum(path.stat().st_size for path in directory.iterdir())

    def free(fd: int) -> int:
        return int(room * save) + used - sum(path.stat().st_size for path in directory.iterdir())

    monkeypatch.setattr(disk, "free_bytes", free)
    told = doctor(".")
    found = told.the("disk")
    assert (told.code, found["severity"]) == (1, severity)
    assert "1 older step could go" in found["cause"]
    assert shell(found["next"]).returncode == 0
    after = doctor(".")
    assert after.tag["steps"] == [4, 6]
    assert after.tag["space"]["saves"] == int(room + 1)


def test_two_steps_and_no_room(run_of, doctor: Doctor, shell: Shell, monkeypatch: pytest.MonkeyPatch):
    run_of(2, 4)
    monkeypatch.setattr(disk, "free_bytes", lambda fd: 1000)
    found = doctor(".").the("disk")
    assert "room for no save" in found["what"]
    assert shell(found["next"]).returncode == 0
    assert doctor(".").tag["steps"] == [4]


def test_one_step_and_no_room(run_of, doctor: Doctor, shell: Shell, monkeypatch: pytest.MonkeyPatch):
    run_of(4)
    monkeypatch.setattr(disk, "free_bytes", lambda fd: 1000)
    shown = shell(doctor(".").the("disk")["next"])
    assert shown.returncode == 0
    assert "base_checkpoints/d2" in shown.stdout


def test_steps_that_could_go_are_a_note(run_of, doctor: Doctor, shell: Shell):
    run_of(2, 4, 6, 8)
    told = doctor(".")
    found = told.the("retention")
    assert (told.code, found["severity"]) == (0, "note")
    assert "2 steps older than the newest 2" in found["what"]
    shown = shell(found["next"])
    assert shown.returncode == 0
    assert shown.stdout.count("would delete") >= 2
    assert doctor(".").tag["steps"] == [2, 4, 6, 8]


def test_steps_that_were_not_looked_at_are_told(run_of, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    """The command would delete them as well."""
    monkeypatch.setattr(examination, "NEWEST", 3)
    run_of(2, 4, 6, 8, 10)
    assert doctor(".").the("retention")["what"].endswith(", and 2 that were not looked at")
    monkeypatch.setattr(disk, "free_bytes", lambda fd: 1000)
    assert doctor(".").the("disk")["cause"].endswith(", and 2 that were not looked at")


KILLED = """
import os, signal, sys
import torch, fastckpt
from fastckpt.io import commit
class Kill:
    def __call__(self, *args, **named):
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = os.replace = Kill()
fastckpt.save({"w": torch.ones(1000)}, sys.argv[1])
"""


def test_a_killed_save_leaves_an_orphan(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2)
    done = forked.run("-c", KILLED, str(directory / "model_000004.fckpt"))
    assert done.returncode == -9
    (orphan,) = directory.glob(".*.fckpt-tmp")
    told = doctor(".")
    found = told.the("orphans")
    assert (told.code, found["severity"]) == (1, "warn")
    assert "1 temp file" in found["what"]
    assert shell(found["next"]).returncode == 0
    assert not orphan.exists()
    assert doctor(".").kinds == []


def test_a_save_that_is_going_on_is_left_alone(run_of, doctor: Doctor):
    directory = run_of(2)
    path = directory / ".model_000004.fckpt.0123456789ab.fckpt-tmp"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        assert doctor(".").kinds == []
    finally:
        os.close(fd)
    assert doctor(".").kinds == ["orphans"]


def test_a_save_is_not_held_up(run_of, doctor: Doctor):
    directory = run_of(2)
    doctor(".")
    begin = time.monotonic()
    fastckpt.save({"w": torch.ones(3)}, directory / "model_000004.fckpt")
    assert within(time.monotonic() - begin, 5)


@pytest.mark.parametrize("name", [".model_1.fckpt.0123456789aX.fckpt-tmp", "model.fckpt-tmp", ".x.fckpt-tmp"])
def test_what_is_not_ours_is_no_orphan(name: str, run_of, doctor: Doctor):
    directory = run_of(2)
    (directory / name).write_bytes(b"x")
    (directory / ".a.0123456789ab.fckpt-tmp").mkdir()
    (directory / ".b.0123456789ab.fckpt-tmp").symlink_to(directory / "model_000002.pt")
    os.mkfifo(directory / ".c.0123456789ab.fckpt-tmp")
    assert doctor(".").kinds == []
