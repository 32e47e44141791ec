"""``nothing is missing, and nothing can prove it``: salvage found every tensor, but no checksum for each."""

from __future__ import annotations

from pathlib import Path

import pytest
from claim_tables import Claim, Make, Tell, made
from test_present import CLAIM as PRESENT

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "nothing is missing, and nothing can prove it" in tell("salvage", *inputs).text


CLAIM = Claim(
    Verdict.NOTHING_MISSING,
    {"text": by_text},
    PRESENT.true,
    PRESENT.rows,
)


def test_it_is_said(true: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(made(CLAIM, true, tmp_path, capsys).values())


def test_it_is_not_said(broken: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not any(made(CLAIM, broken, tmp_path, capsys).values())
