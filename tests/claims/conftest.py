"""Each row of a table is a test."""

from __future__ import annotations

import os

import pytest
from claim_tables import Claim


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsync is for is tested in tests/crash; here it would only take time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def claim(request: pytest.FixtureRequest) -> Claim:
    """The table of the module that a test stands in."""
    found: Claim = request.module.CLAIM
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    claim = getattr(metafunc.module, "CLAIM", None)
    if "true" in metafunc.fixturenames:
        metafunc.parametrize("true", claim.true.values(), ids=claim.true)
    if "broken" in metafunc.fixturenames:
        cases = {f"{row.must} | {name}": make for row in claim.rows for name, make in row.broken.items()}
        metafunc.parametrize("broken", cases.values(), ids=cases)
