"""Shared by the tests of nanochat directories."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from nanochat_forker import Forker


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsync is for is tested in tests/crash; here it would only take time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Starts ranks as processes."""
    with Forker() as running:
        yield running
