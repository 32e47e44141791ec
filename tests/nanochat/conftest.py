"""Shared by the tests of nanochat directories."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsync is for is tested in tests/crash; here it would only take time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
