"""The two tests of every table. A module that has one takes both from here; `conftest.py` gives them its rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from claim_tables import Claim, Make, made


def test_it_is_said(claim: Claim, true: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = made(claim, true, tmp_path, capsys)
    assert all(told.values()), told


@pytest.mark.sampled(3)
def test_it_is_not_said(claim: Claim, broken: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = made(claim, broken, tmp_path, capsys)
    assert not any(told.values()), told
