"""The benchmark of torch.distributed.checkpoint runs on very little data (thorough), and its result makes the table."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.thorough
def test_it_runs_and_makes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    output = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / "dcp.py"), "--rounds", "2", "--dim", "64", "--layers", "2"]
    command += ["--port", port, "--dir", str(tmp_path), "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(output.read_text())
    monkeypatch.syspath_prepend(BENCHMARKS)
    import dcp_ratios
    import table

    assert len(result["ratios"]) == len(dcp_ratios.BARS)
    assert all(value > 0 and wanted > 0 for value, wanted in result["ratios"].values())
    assert all(len(job["seconds"]) == 2 and job["median"] > 0 for job in result["jobs"].values())
    assert result["reads"].keys() == {"2 -> 1 ranks", "1 -> 2 ranks"}
    for row in result["reads"].values():
        # A promise, and no matter of speed.
        assert row["needed"] <= row["read"] <= row["at_most"] == dcp_ratios.may_read(row)
    assert str(tmp_path) not in output.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    shown = table.render_dcp(result)
    assert [line.split(" | ")[0] for line in shown.splitlines()[4:9]] == [f"| {job}" for job, *_ in dcp_ratios.BARS]
    assert "| 2 -> 1 ranks |" in shown
    slower = {**result, "jobs": {name: {**job, "median": 1.0} for name, job in result["jobs"].items()}}
    assert table.render_dcp(slower).count("missed") == sum(wanted > 1 for *_, wanted in dcp_ratios.BARS)
