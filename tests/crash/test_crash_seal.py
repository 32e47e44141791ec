"""`fastckpt.seal`, killed and failed at each of its calls: the sums file is the old one or the new one, whole."""

from __future__ import annotations

import errno

import pytest
from crash_lab import Action, CrashLab, OpenLab

import fastckpt


@pytest.fixture
def lab(open_lab: OpenLab) -> CrashLab:
    return open_lab("save_seal.py", target="data.bin.fckpt-sums")


@pytest.mark.thorough
@pytest.mark.parametrize("action", [Action.KILL, pytest.param(Action.TEAR, marks=pytest.mark.slow)])
def test_killed_at_every_call(lab: CrashLab, action: Action) -> None:
    for outcome in lab.at_every_call(action):
        assert outcome.how == "killed"
        lab.check_after_kill()
    with fastckpt.open(lab.target) as sums:
        assert sums.metadata["seal"]["size"] == 100_000


@pytest.mark.parametrize("error", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)])
def test_each_call_fails_once(lab: CrashLab, error: int) -> None:
    for outcome in lab.at_every_call(Action.FAIL, error=error):
        lab.check_after_error(outcome)


def test_the_file_system_stays_full(lab: CrashLab) -> None:
    for outcome in lab.at_every_call(Action.FAIL_FROM, error=errno.ENOSPC):
        lab.check_after_error(outcome)


@pytest.mark.slow
def test_interrupted_at_every_call(lab: CrashLab) -> None:
    for outcome in lab.at_every_call(Action.INTERRUPT):
        assert outcome.how in ("KeyboardInterrupt", "saved"), outcome
        assert lab.target.read_bytes() in (lab.old, lab.new)
        assert not lab.temp_files(), outcome
