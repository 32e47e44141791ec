"""The GPU benchmark runs from end to end without a GPU, on very little data (thorough)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.thorough


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the limits are those of Linux")
def test_it_runs_on_the_cpu(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    # On a disk, not on a tmpfs: the limits read past the page cache.
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--gb", "0.01", "--rounds", "1", "--output", str(output)]
    ended = subprocess.run([*command, "--dir", str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(output.read_text())
    assert result["correct"]
    assert set(result["left_out"]) <= {"runai-model-streamer", "runai-model-streamer, 2.4 MB matrices"}
    assert set(result["checks"]) == {"saves", "loads", "flipped bits", "foreign files", "compute-sanitizer", "kernels"}
    assert "no GPU" in result["note"]
    assert all(ratio["met"] is None and ratio["measured"] > 0 for ratio in result["ratios"].values())
    assert len(result["ratios"]) == 7
    names = "\n".join(result["jobs"])
    for part in (
        "load_into",
        "stream",
        "verify_tensors",
        "save_async",
        "torch.load(mmap=True), cold",
        "limit: pread",
        "planes",
    ):
        assert part in names
    assert "fastckpt.load of codec planes, cold" in names
    assert all(job["median"] > 0 for job in result["jobs"].values())
    assert str(tmp_path) not in output.read_text()


SABOTAGED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import gpu, gpu_checks
import fastckpt

def broken(*arguments, **options):
    raise RuntimeError("out of order")

gpu_checks.CHECKS = {"saves": broken}
gpu_checks.interpreted = lambda: "not run"
fastckpt.load_into = gpu.safetensors.torch.load_file = broken
measure = gpu.measure_saves
gpu.measure_saves = lambda *arguments: (*measure(*arguments)[:1], lambda: sys.exit("the machine is taken away"))
sys.exit(gpu.main())
"""


@pytest.mark.parametrize("cut", [False, True])
def test_one_try_tells_all_it_can(tmp_path: Path, cut: bool) -> None:
    """What fails is written down, and the rest is measured; what was measured is there when the run is cut short."""
    output = tmp_path / "result.json"
    program = SABOTAGED if cut else "\n".join(line for line in SABOTAGED.splitlines() if "measure" not in line)
    options = ["--device", "cpu", "--gb", "0.001", "--rounds", "1", "--output", str(output), "--dir", str(tmp_path)]
    command = [sys.executable, "-c", program, str(SCRIPT.parent), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1, ended.stderr
    assert ("taken away" in ended.stderr) == cut
    result = json.loads(output.read_text())
    assert not result["correct"]
    assert result["checks"]["saves"].startswith("FAILED: Traceback")
    assert {"fastckpt.load_into", "safetensors.load_file"} <= set(result["left_out"])
    assert result["left_out"]["fastckpt.load_into"] == "RuntimeError: out of order"
    assert "fastckpt.load" in result["jobs"]
    assert ("fastckpt.save" in result["jobs"]) == (not cut)
    assert len(result["ratios"]) == 6, "all but the one with safetensors"
