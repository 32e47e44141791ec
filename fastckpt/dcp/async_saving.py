"""`fastckpt.dcp.async_save`: torch's own async_save, into ``.fckpt`` shards."""

from __future__ import annotations

import os
from typing import Any, Literal

from torch.distributed.checkpoint.state_dict_saver import async_save as save_behind

from fastckpt.dcp.writer import FastckptWriter
from fastckpt.remote.path import Options


def async_save(
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
) -> Any:
    """Save a distributed state in the background, as `torch.distributed.checkpoint.async_save` does.

    Args:
        state_dict, checkpoint_id, codec, parity, parity_at, durable, threads, storage_options: See `fastckpt.dcp.save`.
        options: What torch's function takes besides: ``process_group``, ``async_checkpointer_type``, ``async_stager``.

    Returns:
        What torch's function does: a future, whose ``result()`` waits and raises what went wrong.

    Example:
        >>> fastckpt.dcp.async_save.__name__
        'async_save'
    """
    writer = FastckptWriter(
        checkpoint_id,
        codec=codec,
        parity=parity,
        parity_at=parity_at,
        durable=durable,
        threads=threads,
        storage_options=storage_options,
    )
    return save_behind(state_dict, storage_writer=writer, **options)
