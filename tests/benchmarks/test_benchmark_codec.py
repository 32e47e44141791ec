"""The disk rows of the codecs' benchmark run on little data, and leave the rest of the result as it was (thorough)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.thorough
def test_the_disk_rows_alone(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    output.write_text('{"corpora": {"kept": 1}}')
    command = [sys.executable, str(BENCHMARKS / "codec.py"), "--only", "disk", "--megabytes", "9", "--rounds", "2"]
    command += ["--dir", str(tmp_path), "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(output.read_text())
    assert result["corpora"] == {"kept": 1}
    disk = result["disk"]
    assert disk["ratios"].keys() == {"durable save", "cold load"}
    assert all(value > 0 and wanted == 1.2 for value, wanted in disk["ratios"].values())
    assert all(len(job["seconds"]) == 2 for job in disk["jobs"].values())
    assert disk["file bytes"]["none"] > 1.4 * disk["file bytes"]["planes"]
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert str(tmp_path) not in output.read_text()
