"""Rows of the CPU benchmark that show how time grows with the size of the state."""

from __future__ import annotations

import os
from typing import Any, Final

import limits
import safetensors.torch
import torch
from bench import Bench, Job, touch

import fastckpt

SIZES_MB: Final = (10, 100, 1000)
"""More with ``--sizes``: 8000 wants 16 GB of memory beside the page cache of its two files."""


def measure(bench: Bench, directory: str, sizes_mb: tuple[int, ...]) -> None:
    """Save, load, mapped load with first use, and verify, beside safetensors; warm, not durable."""
    for megabytes in sizes_mb:
        state = _state(megabytes)
        ours, st = (os.path.join(directory, f"scale.{suffix}") for suffix in ("fckpt", "safetensors"))
        jobs: dict[str, Job] = {
            "fastckpt.save(durable=False)": lambda: fastckpt.save(state, ours, durable=False),  # noqa: B023
            "safetensors.save_file": lambda: safetensors.torch.save_file(state, st),  # noqa: B023
            "fastckpt.load": lambda: fastckpt.load(ours),  # noqa: B023
            "safetensors.load_file, copied": lambda: _own(safetensors.torch.load_file(st)),  # noqa: B023
            "fastckpt.load(mmap=True) + touch": lambda: touch(fastckpt.load(ours, mmap=True)),  # noqa: B023
            "safetensors.load_file + touch": lambda: touch(safetensors.torch.load_file(st)),  # noqa: B023
            "fastckpt.verify": lambda: fastckpt.verify(ours),  # noqa: B023
        }
        size = megabytes * 1_000_000
        bench.group(
            {f"{megabytes} MB: {name}": job for name, job in jobs.items()},
            size,
            before=lambda: limits.settle(size),  # noqa: B023
        )
        os.unlink(ours)
        os.unlink(st)


def _state(megabytes: int) -> dict[str, torch.Tensor]:
    """bf16 tensors of at most 8 MB, sixteen at least."""
    numbers = megabytes * 500_000
    each = min(4_000_000, numbers // 16)
    return {f"layers.{index}.weight": torch.randn(each).bfloat16() for index in range(numbers // each)}


def _own(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
