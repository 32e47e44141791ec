"""`fastckpt.dcp.save`: torch's own save, into ``.fckpt`` shards."""

from __future__ import annotations

import os
from typing import Any, Literal

from torch.distributed.checkpoint.state_dict_saver import save as save_through

from fastckpt.dcp.writer import FastckptWriter
from fastckpt.io.file_object import refuse_swapped
from fastckpt.remote.path import Options


def save(
    state_dict: dict[str, Any],
    checkpoint_id: str | os.PathLike[str],
    *,
    codec: str = "none",
    parity: str | None = None,
    parity_at: Literal["beside", "inside"] = "beside",
    durable: bool = True,
    threads: int | None = None,
    storage_options: Options | None = None,
    **options: Any,
) -> None:
    """Save a distributed state: a collective call, as `torch.distributed.checkpoint.save` with a `FastckptWriter`.

    Args:
        state_dict: The state of this rank; DTensors, tensors, objects that `fastckpt.save` takes.
        checkpoint_id: The directory, or its URL.
        codec, parity, parity_at, durable, threads, storage_options: See `FastckptWriter`.
        options: What torch's function takes besides: ``process_group``, ``planner``, ``no_dist``.

    Raises:
        CheckpointException: What went wrong in each rank; the old checkpoint in the directory is untouched.

    Example:
        >>> fastckpt.dcp.save({"w": torch.ones(4), "step": 7}, "step-7", no_dist=True)
    """
    refuse_swapped(state_dict, checkpoint_id, "fastckpt.dcp.save")
    writer = FastckptWriter(
        checkpoint_id,
        codec=codec,
        parity=parity,
        parity_at=parity_at,
        durable=durable,
        threads=threads,
        storage_options=storage_options,
    )
    save_through(state_dict, storage_writer=writer, **options)
