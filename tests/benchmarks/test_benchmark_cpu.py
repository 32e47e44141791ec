"""The CPU benchmark runs from end to end on very little data (thorough), and its result makes the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the limits are those of Linux")
def test_it_runs_and_makes_the_table(tmp_path: Path, monkeypatch: Any) -> None:
    output = tmp_path / "result.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "cpu.py"),
        "--depth",
        "1",
        "--tiny",
        "100",
        "--rounds",
        "3",
        "--sizes",
        "1",
    ]
    # No time at all: every group still has the round that does not count and one that does.
    command += ["--minutes", "0", "--dir", str(tmp_path), "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(output.read_text())
    assert all(value > 0 and wanted > 0 for value, wanted in result["ratios"].values())
    timed = [job for job in result["jobs"].values() if "seconds" in job]
    assert all(len(job["seconds"]) == 1 and job["median"] > 0 for job in timed)
    absent = {job["not_installed"] for job in result["jobs"].values() if "not_installed" in job}
    assert absent <= {"ztensor", "runai_model_streamer", "moonclip"}
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cpu_ratios

    bars = [bar for bar in cpu_ratios.BARS if all(cpu_ratios.row_of(result["jobs"], job) for job in bar[1:3])]
    assert list(result["ratios"]) == [bar[0] for bar in bars]
    assert absent or bars == list(cpu_ratios.BARS)

    limits = {name for name in result["jobs"] if name.startswith("limit:")}
    counted = {name for name in limits for bar in cpu_ratios.BARS if cpu_ratios.row_of({name: {"median": 1}}, bar[2])}
    beside = {"memcpy into touched memory", "pread into huge pages in use", "clone every tensor"}
    assert limits - counted == {f"limit: {name}" for name in beside}

    stale = {"limit: of an older run": {"median": 0.1, "group": "memory"}}
    output.write_text(json.dumps(result | {"jobs": result["jobs"] | stale}))
    again = [*command, "--only", "memory"]
    ended = subprocess.run(again, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    merged = json.loads(output.read_text())
    assert merged["jobs"].keys() == result["jobs"].keys()
    changed = [name for name, row in merged["jobs"].items() if row != result["jobs"][name]]
    assert changed == ["limit: memcpy into touched memory"]
    assert str(tmp_path) not in output.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]

    import table

    shown = table.render(result)
    assert "Medians of 1 interleaved rounds" in shown
    result["jobs"]["fastckpt.load"]["seconds"] *= 4
    assert "Medians of 1 to 4 interleaved rounds" in table.render(result)
    made = table.Table(Path(), table.BEGIN, table.END, shown)
    assert made.put(f"before {table.BEGIN} old {table.END} after").count(shown) == 1


def test_a_limit_that_was_measured_in_several_ways_counts_with_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cpu_ratios

    for _, ours, limit, _ in cpu_ratios.BARS:
        if limit.startswith("limit:"):
            ways = (("one way", 2.0), ("another", 1.0))
            jobs = {f"{limit}, {way}": {"median": seconds, "seconds": [seconds]} for way, seconds in ways}
            mine = {"median": 2.0, "seconds": [2.0]}
            assert 0.5 in {ratio for ratio, _ in cpu_ratios.ratios({ours: mine, **jobs}).values()}


def test_what_slows_a_whole_round_changes_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cpu_ratios

    ours, other = [1.0, 5.0, 1.0], [0.5, 2.5, 4.0]
    assert cpu_ratios.ratio({"seconds": ours}, {"seconds": other}) == 0.5


PROGRAMS = "accidents cpu dcp gpu gpu_host hashing many salvage table versions"


@pytest.mark.thorough
@pytest.mark.parametrize("name", [f"{name}.py" for name in PROGRAMS.split()])
def test_it_starts(name: str) -> None:
    """The short form: every module that it needs is there, and it names its options."""
    ended = forked.run(str(BENCHMARKS / name), "--help")
    assert ended.returncode == 0, ended.stderr
    assert "usage:" in ended.stdout
