"""Building the native core from source: what it says where there is no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the tests stand apart from the sources")
def test_without_a_compiler(tmp_path: Path) -> None:
    """It fails, which fails the installation, and the last words say what is missing."""
    pytest.importorskip("setuptools")
    build = ["build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"]
    missing = str(tmp_path / "no-such-compiler")
    ended = subprocess.run(
        [sys.executable, "setup.py", *build],
        cwd=ROOT,
        env={**os.environ, "CC": missing, "CXX": missing},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert "no-such-compiler" in ended.stderr
    assert "needs a C++17 compiler and Python's headers" in ended.stderr.splitlines()[-1]
    assert not list((tmp_path / "lib").glob("**/*.so"))
