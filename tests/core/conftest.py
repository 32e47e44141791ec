"""What the tests of the native core share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastckpt import _core


@pytest.fixture(params=["portable", "neon", "sse2", "avx2", "avx512"])
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn; those this machine lacks are skipped."""
    level: str = request.param
    if level not in _core.simd_levels():
        pytest.skip(f"this CPU has no {level}")
    before = _core.simd_level()
    _core.set_simd_level(level)
    yield level
    _core.set_simd_level(before)


@pytest.fixture
def direct_dir(tmp_path: Path) -> Path:
    """A directory on a file system that takes O_DIRECT."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this platform has no O_DIRECT")
    try:
        os.close(os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {tmp_path}: {error}")
    return tmp_path
