"""The commit protocol alone, killed, failed and interrupted at each of its calls."""

from __future__ import annotations

import errno

import pytest
from crash_lab import Action, CrashLab, OpenLab


@pytest.fixture
def lab(open_lab: OpenLab) -> CrashLab:
    return open_lab("save_with_commit.py")


@pytest.mark.parametrize("action", [Action.KILL, Action.TEAR])
def test_killed_at_every_call(lab: CrashLab, action: Action) -> None:
    orphans = 0
    for outcome in lab.at_every_call(action):
        assert outcome.how == "killed"
        orphans += len(lab.temp_files())
        lab.check_after_kill()
    assert orphans, "no kill came while a temp file existed"


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EINTR])
def test_each_call_fails_once(lab: CrashLab, error: int) -> None:
    hits = {}
    for outcome in lab.at_every_call(Action.FAIL, error=error):
        lab.check_after_error(outcome)
        hits[outcome.hit] = outcome.how
    for name in ("pwrite64", "fsync", "renameat", "openat64"):
        assert name in hits
    if error == errno.EINTR:
        assert {hits[name] for name in ("pwrite64", "fsync", "openat64", "flock", "fallocate64")} == {"saved"}


def test_the_file_system_stays_full(lab: CrashLab) -> None:
    for outcome in lab.at_every_call(Action.FAIL_FROM, error=errno.ENOSPC):
        lab.check_after_error(outcome)


def test_interrupted_at_every_call(lab: CrashLab) -> None:
    for outcome in lab.at_every_call(Action.INTERRUPT):
        assert outcome.how == "KeyboardInterrupt"
        assert lab.target.read_bytes() in (lab.old, lab.new)
        assert not lab.temp_files(), outcome
        lab.check_next_save()


def test_short_writes_lose_nothing(lab: CrashLab) -> None:
    lab.reset()
    assert lab.save(action=Action.SHORT).how == "saved"
    assert lab.target.read_bytes() == lab.new


def test_sweeping_is_killed_or_fails(lab: CrashLab) -> None:
    """A save that begins by removing an orphan is as safe at each call, and a later one removes it."""
    orphan = lab.directory / ".model.fckpt.0123456789ab.fckpt-tmp"
    for action in (Action.KILL, Action.FAIL):
        for number in range(1, 12):
            lab.reset()
            orphan.write_bytes(b"left over")
            outcome = lab.save(action=action, number=number, error=errno.EIO)
            assert outcome.how in ("killed", "typed error", "saved")
            lab.check_after_kill()
