"""`fastckpt.dcp.load`: torch's own load, from ``.fckpt`` shards."""

from __future__ import annotations

import os
from typing import Any

from torch.distributed.checkpoint.state_dict_loader import load as load_through

from fastckpt.dcp.reader import FastckptReader
from fastckpt.io.file_object import refuse_swapped
from fastckpt.remote.path import Options


def load(
    state_dict: dict[str, Any],
    checkpoint_id: str | os.PathLike[str],
    *,
    threads: int | None = None,
    storage_options: Options | None = None,
    **options: Any,
) -> None:
    """Load into a distributed state, in place: as `torch.distributed.checkpoint.load` with a `FastckptReader`.

    The number of ranks and the way the tensors are sharded may be others than when it was saved.

    Args:
        state_dict: The state of this rank, of which the tensors are filled and the other values replaced.
        checkpoint_id: The directory, or its URL.
        threads, storage_options: See `FastckptReader`.
        options: What torch's function takes besides: ``process_group``, ``planner``, ``no_dist``.

    Raises:
        CheckpointException: What went wrong in each rank; the state is partly overwritten by then.

    Example:
        >>> state = {"w": torch.empty(4), "step": 0}
        >>> fastckpt.dcp.load(state, "step-3", no_dist=True)
        >>> state["step"]
        3
    """
    refuse_swapped(state_dict, checkpoint_id, "fastckpt.dcp.load")
    load_through(
        state_dict,
        storage_reader=FastckptReader(checkpoint_id, threads=threads, storage_options=storage_options),
        **options,
    )
