"""Which engine is live, and that whatever is wrong with Triton has one answer: the host, with the reason."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_jobs import (
    Call,
    engine,
    engine_when,
    engine_with_a_default_device,
    engine_with_broken_triton,
    engine_without_triton,
    launches_of_two_questions,
)
from leaf_oracle import oracle

from fastckpt.kernels.dispatch import engine_for, leaf_digests


def test_the_interpreter_is_an_engine_for_cpu_tensors(interpreted: Call) -> None:
    live = interpreted(engine, "cpu")
    assert live.name == "triton"
    assert "interpreter" in live.why


def test_the_default_device_of_torch_does_not_matter(interpreted: Call) -> None:
    assert interpreted(engine_with_a_default_device).name == "triton"
    with torch.device("meta"):
        digests = leaf_digests(torch.zeros(20_000, dtype=torch.uint8, device="cpu"))
        assert leaf_digests(torch.zeros(0, dtype=torch.uint8, device="cpu")).device.type == "cpu"
    assert [digest % 2**64 for digest in digests.tolist()] == oracle(bytes(20_000))


def test_cpu_tensors_are_hashed_by_the_native_core() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 asks for the kernels on CPU tensors")
    live = engine_for(torch.device("cpu"))
    assert live.name == "host"
    assert "native core" in live.why


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "meta", "mps"])
def test_an_absent_device_has_an_answer(device: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    live = engine_for(device)
    assert live.name == "host"
    assert live.why


def test_without_triton(interpreted: Call) -> None:
    live = interpreted(engine_without_triton)
    assert (live.name, live.why) == ("host", "triton is not installed")


def test_a_triton_that_cannot_be_imported(interpreted: Call, tmp_path: Path) -> None:
    live = interpreted(engine_with_broken_triton, str(tmp_path))
    assert live.name == "host"
    assert "wrong ELF class" in live.why


@pytest.mark.parametrize("function", ["hash_leaves", "check_leaves"])
def test_a_kernel_that_cannot_be_built(interpreted: Call, function: str) -> None:
    live = interpreted(engine_when, function, "raises")
    assert live.name == "host"
    assert live.why.endswith("Failed to find C compiler.")


@pytest.mark.parametrize("function", ["hash_leaves", "check_leaves"])
@pytest.mark.parametrize("does", ["nothing", "zeros"])
def test_a_kernel_that_is_wrong_is_not_trusted(interpreted: Call, function: str, does: str) -> None:
    live = interpreted(engine_when, function, does)
    assert live.name == "host"
    assert "wrong digests" in live.why


def test_a_device_is_tried_once(interpreted: Call) -> None:
    assert interpreted(launches_of_two_questions) == 0


@pytest.mark.parametrize("size", [0, 1, 16384, 100_001])
def test_digests_of_cpu_bytes(size: int) -> None:
    data = random.Random(size).randbytes(size)
    tensor = torch.frombuffer(bytearray(b"-" + data), dtype=torch.uint8)[1:]
    assert [digest % 2**64 for digest in leaf_digests(tensor).tolist()] == oracle(data)


def test_only_contiguous_bytes_are_hashed() -> None:
    bytes_of = torch.zeros(64, dtype=torch.uint8)
    for wrong in (bytes_of.view(torch.int64), bytes_of.view(8, 8), bytes_of[::2]):
        with pytest.raises(ValueError, match="contiguous bytes"):
            leaf_digests(wrong)


def test_dispatch_does_not_import_triton() -> None:
    code = "import sys, fastckpt.kernels.dispatch, fastckpt.kernels.launch; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
