"""`fastckpt.save`, killed, failed and interrupted at each of its calls."""

from __future__ import annotations

import errno

import pytest
from crash_lab import Action, CrashLab, OpenLab

import fastckpt


@pytest.fixture(
    params=[
        "save_state.py",
        pytest.param("save_compressed.py", marks=pytest.mark.thorough),
        pytest.param("save_planes.py", marks=pytest.mark.thorough),
    ]
)
def lab(open_lab: OpenLab, request: pytest.FixtureRequest) -> CrashLab:
    return open_lab(request.param)


def check_loads(lab: CrashLab) -> None:
    """What is at the target is a checkpoint of one of the two versions."""
    state = fastckpt.load(lab.target)
    assert state["step"] in (1, 2)
    assert float(state["model"]["wte"][0]) == state["step"]


@pytest.mark.parametrize(
    ("action", "every"),
    [(Action.KILL, 1), (Action.TEAR, 3), pytest.param(Action.TEAR, 1, marks=pytest.mark.thorough)],
)
def test_killed_at_every_call(lab: CrashLab, action: Action, every: int) -> None:
    for outcome in lab.at_every_call(action, every=every):
        assert outcome.how == "killed"
        lab.check_after_kill()
    check_loads(lab)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_each_call_fails_once(lab: CrashLab, error: int) -> None:
    for outcome in lab.at_every_call(Action.FAIL, error=error):
        lab.check_after_error(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EINTR, errno.EINVAL, errno.ESTALE])
def test_each_call_fails_once_with_rarer_errors(lab: CrashLab, error: int) -> None:
    for outcome in lab.at_every_call(Action.FAIL, error=error):
        lab.check_after_error(outcome)


def test_the_file_system_stays_full(lab: CrashLab) -> None:
    for outcome in lab.at_every_call(Action.FAIL_FROM, error=errno.ENOSPC):
        lab.check_after_error(outcome)


def test_interrupted_at_every_call(lab: CrashLab) -> None:
    for outcome in lab.at_every_call(Action.INTERRUPT):
        # An interrupt in the last instants may come when the save is done.
        assert outcome.how in ("KeyboardInterrupt", "saved"), outcome
        assert lab.target.read_bytes() in (lab.old, lab.new)
        assert not lab.temp_files(), outcome


def test_short_writes_lose_nothing(lab: CrashLab) -> None:
    lab.reset()
    assert lab.save(action=Action.SHORT).how == "saved"
    assert lab.target.read_bytes() == lab.new
    check_loads(lab)
