"""Which engine is live, and that whatever is wrong with Triton has one answer: the host, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_jobs import (
    Call,
    engine,
    engine_when,
    engine_when_decoding,
    engine_with_a_default_device,
    engine_with_broken_triton,
    engine_without_triton,
    kernels_that_ran,
    launches_of_two_questions,
)
from triton_versions import can_decode_planes

from fastckpt.kernels.dispatch import engine_for


def test_the_interpreter_is_an_engine_for_cpu_tensors(interpreted: Call) -> None:
    live = interpreted(engine, "cpu")
    assert live.name == "triton"
    assert "interpreter" in live.why


def test_the_default_device_of_torch_does_not_matter(interpreted: Call) -> None:
    assert interpreted(engine_with_a_default_device).name == "triton"


def test_cpu_tensors_are_hashed_by_the_native_core() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 asks for the kernels on CPU tensors")
    live = engine_for(torch.device("cpu"), "check_kernel")
    assert live.name == "host"
    assert "native core" in live.why


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "meta", "mps"])
def test_an_absent_device_has_an_answer(device: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    live = engine_for(device, "check_kernel")
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


@can_decode_planes
@pytest.mark.parametrize("does", ["nothing", "flags", "too much"])
def test_a_decoder_that_is_wrong_is_not_trusted(interpreted: Call, does: str) -> None:
    live = interpreted(engine_when_decoding, does)
    assert live.name == "host"
    assert "decodes wrong" in live.why


@can_decode_planes
def test_a_decoder_that_is_right(interpreted: Call) -> None:
    assert interpreted(engine, "cpu", "decode_planes").name == "triton"


@pytest.mark.parametrize("kernel", ["check_kernel", "hash_kernel"])
def test_what_is_asked_for_is_tried_and_nothing_else(interpreted: Call, kernel: str) -> None:
    """On whole leaves and on others."""
    assert interpreted(kernels_that_ran, kernel) == [kernel] * 2


def test_a_device_is_tried_once(interpreted: Call) -> None:
    assert interpreted(launches_of_two_questions) == 0


@pytest.mark.thorough
def test_dispatch_does_not_import_triton() -> None:
    code = "import sys, fastckpt.kernels.dispatch, fastckpt.kernels.launch; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
