"""The bars of the CPU benchmark: how much faster we are than a limit or a peer, and how much we want to be."""

from __future__ import annotations

import statistics
from typing import Any, Final

BARS: Final = (
    # What, our job, the job it is measured by, and the least ratio wanted.
    ("load(mmap=True) / xxhash over the warm map", "fastckpt.load(mmap=True)", "limit: read the warm map", 1),
    ("verify / xxhash over the warm map", "fastckpt.verify", "limit: read the warm map", 1),
    ("load(mmap=True) / torch.load", "fastckpt.load(mmap=True)", "torch.load", 8),
    (
        "load(mmap=True), then read / safetensors.load_file, then read",
        "fastckpt.load(mmap=True) + touch",
        "safetensors.load_file + touch",
        1,
    ),
    (
        "load(mmap=True), then read / verified ztensor, then read",
        "fastckpt.load(mmap=True) + touch",
        "ztensor.open, verified + touch",
        1,
    ),
    ("load_into / pread into the tensors", "fastckpt.load_into", "limit: pread into the tensors", 0.85),
    ("load / pread into fresh huge pages", "fastckpt.load", "limit: pread into fresh huge pages", 0.8),
    ("load / torch.load", "fastckpt.load", "torch.load", 2),
    ("load / runai-model-streamer", "fastckpt.load", "runai-model-streamer", 1),
    (
        "load of a .pt / pread into fresh huge pages",
        "fastckpt.load (.pt, CRCs checked)",
        "limit: pread into fresh huge pages",
        0.8,
    ),
    (
        "load of a .safetensors / safetensors.load_file, copied",
        "fastckpt.load (.safetensors)",
        "safetensors.load_file, copied",
        1,
    ),
    ("load of a .safetensors / runai-model-streamer", "fastckpt.load (.safetensors)", "runai-model-streamer", 1),
    ("load cold / O_DIRECT read", "fastckpt.load, cold", "limit: O_DIRECT into fresh huge pages", 0.9),
    (
        "load_into cold / O_DIRECT read into the tensors",
        "fastckpt.load_into, cold",
        "limit: O_DIRECT read into the tensors",
        0.9,
    ),
    (
        "load of a .pt cold / O_DIRECT read",
        "fastckpt.load (.pt, CRCs checked), cold",
        "limit: O_DIRECT into fresh huge pages",
        0.9,
    ),
    (
        "load of a .safetensors cold / O_DIRECT read",
        "fastckpt.load (.safetensors), cold",
        "limit: O_DIRECT into fresh huge pages",
        0.9,
    ),
    ("stream cold / O_DIRECT read", "fastckpt.stream, cold", "limit: O_DIRECT into fresh huge pages", 0.9),
    ("verify cold / O_DIRECT read", "fastckpt.verify, cold", "limit: O_DIRECT read", 0.9),
    ("load cold / runai-model-streamer", "fastckpt.load, cold", "runai-model-streamer, cold", 1),
    ("save / O_DIRECT write + fsync", "fastckpt.save", "limit: O_DIRECT write + fsync", 0.9),
    ("save / hashed, O_DIRECT write + fsync", "fastckpt.save", "limit: hashed, O_DIRECT write + fsync", 0.9),
    ("save / torch.save + fsync", "fastckpt.save", "torch.save + fsync", 2),
    ("save / safetensors.save_file + fsync", "fastckpt.save", "safetensors.save_file + fsync", 1),
    ("save(durable=False) / buffered pwrite", "fastckpt.save(durable=False)", "limit: buffered pwrite", 0.8),
    (
        "save_async, until it returns / dcp.async_save",
        "fastckpt.save_async, until it returns",
        "dcp.async_save, until it returns",
        2,
    ),
    (
        "convert / torch.load + torch.save + fsync",
        "fastckpt.convert (.pt, durable)",
        "torch.load + torch.save + fsync",
        1.5,
    ),
    (
        "convert / torch.load(mmap=True) + torch.save + fsync",
        "fastckpt.convert (.pt, durable)",
        "torch.load(mmap=True) + torch.save + fsync",
        1,
    ),
)


def row_of(jobs: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The job of this name, if it ran; a limit that was measured in several ways counts with its best."""
    rows = [
        row
        for name, row in jobs.items()
        if "median" in row and (name == key or (key.startswith("limit:") and name.startswith(key + ",")))
    ]
    return min(rows, key=lambda row: float(row["median"]), default=None)


def ratio(ours: dict[str, Any], other: dict[str, Any]) -> float:
    """How many times faster the one is: the median over the rounds that both were in.

    Not the ratio of the medians: what slows the machine in one round slows both of them.
    """
    pairs = zip(ours["seconds"], other["seconds"], strict=False)
    return statistics.median(slow / fast for fast, slow in pairs)


def ratios(jobs: dict[str, Any]) -> dict[str, list[float]]:
    """Of every bar whose jobs ran: the ratio, and what is wanted."""
    found = {}
    for what, ours, other, wanted in BARS:
        one, two = row_of(jobs, ours), row_of(jobs, other)
        if one is not None and two is not None:
            found[what] = [round(ratio(one, two), 3), wanted]
    return found
