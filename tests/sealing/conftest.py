"""A sealed file with parity."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from changes import SIZE

import fastckpt


@pytest.fixture
def good() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture
def path(tmp_path: Path, good: bytes) -> Path:
    """A file that is sealed with 3 %."""
    path = tmp_path / "model.bin"
    path.write_bytes(good)
    fastckpt.seal(path, parity="3%", durable=False)
    return path
