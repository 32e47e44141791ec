"""The kernels compile, without a GPU, to machine code that keeps everything in registers."""

from __future__ import annotations

from importlib import metadata

import pytest
from kernel_jobs import Call, compilations_of, compile_for

SM_REGISTERS = 65536
WARPS_NEEDED = 12
"""With 4 KiB on its way for each, these are 48 KiB per SM. An H200 needs 4.8 TB/s x 1 us / 132 SMs = 36 KiB."""


@pytest.mark.thorough
@pytest.mark.parametrize("capability", [90, *(pytest.param(other, marks=pytest.mark.thorough) for other in (80, 100))])
@pytest.mark.parametrize("kernel", ["hash_kernel", "check_kernel"])
def test_no_spills_and_wide_loads(compiled: Call, kernel: str, capability: int) -> None:
    if capability == 100 and metadata.version("triton").startswith("3.2."):
        pytest.skip("the compiler that Triton 3.2 brings does not know sm_100")
    found = compiled(compile_for, "leaf_hash", kernel, capability)
    assert found["usage"]["STACK"] == 0
    assert found["usage"]["LOCAL"] == 0
    registers = -(-found["usage"]["REG"] // 8) * 8  # handed out by eights
    assert SM_REGISTERS // (32 * registers) >= WARPS_NEEDED
    kinds = {name.split(".")[0] for name in found["instructions"]}
    assert {"LDG", "EXIT"} <= kinds
    assert not kinds & {"LDL", "STL"}
    # Both blocks of the loop, the one before it and the one behind it: 8 loads of 16 bytes each, or more if unrolled.
    assert sum(name.startswith("LDG") and ".128" in name for name in found["instructions"]) >= 4 * 8


@pytest.mark.parametrize("kernel", ["hash_kernel", "check_kernel"])
def test_what_was_compiled_ahead_serves_every_table(compiled: Call, kernel: str) -> None:
    assert compiled(compilations_of, kernel) == [1] * 5
