"""The core compiles for macOS on ARM, without a call that only Linux has. It is not run there."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.mark.thorough
def test_core_compiles_for_macos(tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="needs zig, which has the headers of macOS")
    # All else is C++ alone, which test_core_arm.py compiles for this CPU.
    asks_the_system = re.compile(r'#include (<(sys/.*|fcntl|unistd|signal|arm_neon)\.h>|"(cpu|common)\.h")')
    every = [path for room in ("core", "python") for path in CSRC.glob(f"{room}/*.cc")]
    sources = [path for path in every if asks_the_system.search(path.read_text())]
    if not sources:
        pytest.skip("needs the source tree")

    def compiled(source: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-macos", "-std=c++17", "-Wall", "-Wextra"]
        options = ["-Werror", "-DPy_LIMITED_API=0x030B0000", f"-I{sysconfig.get_path('include')}"]
        outcome = ["-c", "-o", str(tmp_path / f"{source.stem}.o"), str(source)]
        return subprocess.run([*command, *options, *outcome], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        for source, done in zip(sources, pool.map(compiled, sources), strict=True):
            assert done.returncode == 0, f"{source.name}: {done.stderr}"
