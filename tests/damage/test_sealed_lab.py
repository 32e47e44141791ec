"""The lab for sealed files, in the size that fits into every run; ``FASTCKPT_LAB_CASES`` chooses another one."""

from __future__ import annotations

import os

import pytest
import sealed_lab
from trials import check

SEED = int(os.environ.get("FASTCKPT_LAB_SEED", "1"))


@pytest.mark.parametrize("count", [90, pytest.param(1_500, marks=pytest.mark.thorough)])
def test_cases(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    workers = 1 if "PYTEST_XDIST_WORKER" in os.environ else None
    tally = sealed_lab.TRIALS.run(count, SEED, workers=workers)
    with capsys.disabled():
        print()
        check(tally, count, "tests/damage/sealed_lab.py")
    found = sum((statuses["changed"] for statuses in tally.statuses.values()), 0)
    assert found > count / 3, "of files that are stale there is little to tell"
