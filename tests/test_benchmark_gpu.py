"""The GPU benchmark runs from end to end without a GPU, on very little data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the limits are those of Linux")
def test_it_runs_on_the_cpu(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    # On a disk, not on a tmpfs: the limits read past the page cache.
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--gb", "0.01", "--rounds", "1", "--output", str(output)]
    ended = subprocess.run([*command, "--dir", str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(output.read_text())
    assert set(result["checks"]) == {"saves", "loads", "flipped bits", "foreign files", "compute-sanitizer", "kernels"}
    assert "no GPU" in result["note"]
    assert all(ratio["met"] is None and ratio["measured"] > 0 for ratio in result["ratios"].values())
    assert len(result["ratios"]) == 5
    names = "\n".join(result["jobs"])
    for part in ("load_into", "stream", "verify_tensors", "save_async", "torch.load(mmap=True), cold", "limit: pread"):
        assert part in names
    assert all(job["median"] > 0 for job in result["jobs"].values())
    assert str(tmp_path) not in output.read_text()
