"""A checkpoint of several files in memory: a model in shards, or one of torch.distributed.checkpoint, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from fastckpt.loading.assembly import Assembly
from fastckpt.loading.own_set import load_own_set
from fastckpt.loading.shards import load_shards
from fastckpt.remote.path import Place
from fastckpt.sets import dcp, own
from fastckpt.sets.one_checkpoint import one_checkpoint


def load_set(
    directory: Place,
    keys: str | Iterable[str] | None,
    load_file: Callable[..., Any],
    *,
    device: torch.device,
    threads: int | None,
    opaque: Literal["error", "keep"],
) -> Any:
    """`fastckpt.load` of a directory.

    Args:
        directory: The directory of one checkpoint.
        keys: What is wanted; None is all.
        load_file: `fastckpt.load` of a single file, by path or open already, with all other options.
        device: Where the tensors shall be.
        threads: Worker threads.
        opaque: What to do about objects that are not known.

    Raises:
        DamagedError: A file is missing, damaged, or not what the manifest says.
        UsageError: It holds several checkpoints, or files of several kinds: which one is meant?
        NotACheckpointError: It holds none.
        TensorNotFoundError: A key matches no tensor.
    """
    one = one_checkpoint(directory)
    if one.kind == dcp.KIND:
        return Assembly(one, device, threads, opaque).load(keys)
    if one.kind == own.KIND:
        return load_own_set(one, keys, load_file, device)
    return load_shards(one, keys, load_file)
