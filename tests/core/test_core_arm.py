"""The core of 64-bit ARM: its kernels on NEON against the portable ones, in an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CORE_TESTS = Path(__file__).resolve().parents[2] / "csrc" / "tests"
COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")


@pytest.mark.thorough
def test_core_on_arm() -> None:
    """The core's own tests, and its fuzz targets without sanitizers: those compare the instruction sets."""
    if not (CORE_TESTS / "Makefile").exists() or shutil.which("make") is None:
        pytest.skip("needs the source tree and make")
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER}")
    emulator = next(filter(shutil.which, EMULATORS), None)
    if emulator is None:
        pytest.skip("needs qemu-user")
    options = {
        "CXX": f"{COMPILER} -static",  # needs no libraries of that machine
        "CLANGXX": "false",
        "RUN": emulator,
        "FUZZ_SANITIZE": "",
        "FUZZ_SECONDS": "1",
        "BUILD": "../../build/arm",
    }
    command = [
        "make",
        "-C",
        str(CORE_TESTS),
        "-j2",
        "run",
        "fuzz",
        *(f"{name}={value}" for name, value in options.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "all passed" in done.stdout
    for target in CORE_TESTS.glob("fuzz_*.cc"):
        if target.stem != "fuzz_main":
            assert target.stem in done.stdout
