"""The kernels that decode planes compile, without a GPU, to machine code that keeps everything in registers."""

from __future__ import annotations

import pytest
from kernel_jobs import Call, compilations_of_planes, compile_for
from triton_versions import can_decode_planes

pytestmark = can_decode_planes


@pytest.mark.thorough
@pytest.mark.parametrize("capability", [90, *(pytest.param(other, marks=pytest.mark.thorough) for other in (80, 100))])
@pytest.mark.parametrize("kernel", ["plan_kernel", "tile_kernel"])
def test_no_spills(compiled: Call, kernel: str, capability: int) -> None:
    found = compiled(compile_for, "planes", kernel, capability)
    assert found["usage"]["STACK"] == 0
    assert found["usage"]["LOCAL"] == 0
    kinds = {name.split(".")[0] for name in found["instructions"]}
    assert {"LDG", "STG", "EXIT"} <= kinds
    assert not kinds & {"LDL", "STL"}


def test_what_was_compiled_ahead_serves_every_table(compiled: Call) -> None:
    assert compiled(compilations_of_planes) == [(1, 1)] * 4
