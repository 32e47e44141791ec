"""The kernels compile, without a GPU, to machine code that keeps everything in registers."""

from __future__ import annotations

import pytest
from kernel_jobs import Call, compile_for

SM_REGISTERS = 65536
WARPS_NEEDED = 12
"""Resident warps that keep 48 KiB in flight on each SM: an H200 needs 4.8 TB/s x 1 us / 132 SMs = 36 KiB."""


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kernel", ["hash_kernel", "check_kernel"])
def test_no_spills_and_wide_loads(compiled: Call, kernel: str, capability: int) -> None:
    found = compiled(compile_for, kernel, capability)
    assert found["usage"]["STACK"] == 0
    assert found["usage"]["LOCAL"] == 0
    assert SM_REGISTERS // (32 * found["usage"]["REG"]) >= WARPS_NEEDED
    kinds = {name.split(".")[0] for name in found["instructions"]}
    assert {"LDG", "EXIT"} <= kinds
    assert not kinds & {"LDL", "STL"}
    # Both blocks of the loop, the one before it and the one behind it: 8 loads of 16 bytes each.
    assert sum(name.startswith("LDG") and ".128" in name for name in found["instructions"]) == 4 * 8
