"""The lab of mixes itself: it notices what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mixes
import pytest
from trials import Tally, scratch

import fastckpt


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The good files, and an empty directory."""
    with scratch():
        yield tmp_path


@pytest.mark.parametrize("what", ["complete", "unsaid", "wrong"])
def test_the_lab_notices_what_is_wrong(place: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A salvage that is silent about a mix, calls it complete, or calls everything intact is found out."""
    real = fastckpt.salvage

    def careless(source: Path, destination: Path | None = None, **options: object) -> object:
        report = real(source, destination, **options)  # type: ignore[arg-type]
        if what == "wrong":
            for fate in report.tensors.values():
                fate.status = type(fate.status)("intact")
        elif what == "complete":
            report.complete, report.exit_code = True, 0
        else:
            report.notes, report.findings, report.exit_code = [], [], report.exit_code or 1
        return report

    monkeypatch.setattr(fastckpt, "salvage", careless)
    tally = Tally()
    for seed in range(60):
        mixes.TRIALS.try_case("copy-interrupted-and-end-gone", seed, place, tally)
    assert tally.count("wrong") >= 2, tally.summary()
