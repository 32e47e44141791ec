"""``nothing is damaged``: salvage found every tensor, and a checksum for each that matches."""

from __future__ import annotations

from pathlib import Path

import pytest
from claim_inputs import PROVEN, UNPROVEN, good
from claim_tables import Claim, Make, Row, Tell, made
from test_intact import CLAIM as INTACT

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "nothing is damaged" in tell("salvage", *inputs).text


CLAIM = Claim(
    Verdict.NOTHING_DAMAGED,
    {"text": by_text},
    {form: good(form) for form in PROVEN},
    # What salvage calls undamaged is intact.
    [*INTACT.rows, Row("there is a checksum for every tensor", {f"{form}: whole": good(form) for form in UNPROVEN})],
)


def test_it_is_said(true: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(made(CLAIM, true, tmp_path, capsys).values())


def test_it_is_not_said(broken: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not any(made(CLAIM, broken, tmp_path, capsys).values())
