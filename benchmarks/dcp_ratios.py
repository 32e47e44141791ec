"""The bars of the benchmark of torch.distributed.checkpoint: how much faster we are, and how much we want to be."""

from __future__ import annotations

from typing import Any, Final

OURS, TORCHS = "fastckpt.dcp, every byte verified", "FileSystemWriter / Reader"
DIRECTORY, ONE_BY_ONE = "the directory", "each file by itself"
BARS: Final = (
    # The job, who does it and who is the measure, and the least ratio wanted.
    ("save, durable", OURS, TORCHS, 1.3),
    ("load, warm", OURS, TORCHS, 1.3),
    ("load, cold", OURS, TORCHS, 1.3),
    ("async_save, until it returns", OURS, TORCHS, 1.0),
    ("verify, warm", DIRECTORY, ONE_BY_ONE, 0.9),
)
MOST_READ: Final = 1.02
"""Times the bytes that are needed, besides two leaves for each part."""
LEAF: Final = 16384


def ratios(jobs: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """What was measured and what is wanted for each bar whose jobs are there."""
    found = {}
    for job, ours, theirs, wanted in BARS:
        if {f"{job}: {ours}", f"{job}: {theirs}"} <= jobs.keys():
            a, b = (jobs[f"{job}: {name}"]["median"] for name in (ours, theirs))
            found[job] = (b / a, wanted)
    return found


def may_read(row: dict[str, int]) -> float:
    """The most bytes that a load on other ranks may read."""
    return MOST_READ * row["needed"] + 2 * LEAF * row["parts"]
