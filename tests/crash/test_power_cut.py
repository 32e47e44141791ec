"""A power cut at any call of a save leaves the old file or the new one, whole."""

from __future__ import annotations

import pytest
from crash_lab import CrashLab, OpenLab
from power_cut import check_written_once, states_after_cut


def outcomes(lab: CrashLab, subsets: int) -> dict[str, bytes]:
    calls = lab.calls()
    check_written_once(calls)
    states = states_after_cut(calls, str(lab.directory), str(lab.target), old=lab.old, new=lab.new, subsets=subsets)
    return dict(states)


def check_old_or_new(lab: CrashLab, subsets: int) -> None:
    states = outcomes(lab, subsets)
    for where, content in states.items():
        assert content in (lab.old, lab.new), where
    assert lab.new in states.values()
    # Once the save has returned, the new file is there for good.
    count = len(lab.calls())
    last = [content for where, content in states.items() if where.startswith(f"cut before call {count} of")]
    assert last == [lab.new]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("script", ["save_with_commit.py", "save_state.py", "save_compressed.py", "save_planes.py"])
def test_power_cut(open_lab: OpenLab, script: str) -> None:
    check_old_or_new(open_lab(script), subsets=3)


def test_simulation_finds_what_a_missing_fsync_loses(open_lab: OpenLab) -> None:
    """Without this the tests above would prove nothing."""
    lab = open_lab("save_without_durable.py")
    lost = [where for where, content in outcomes(lab, subsets=3).items() if content not in (lab.old, lab.new)]
    assert lost
