"""Saves of sets and of steps, in all the ways of `set_states`, of which one process is killed.

Run by `host.py`. The way "rank N" saves on two gloo ranks, and N is the one that the shim is armed in. The other one
ends by itself when it loses that, and only then does the host say how the save ended.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # What DTensors import when the first one is made: it takes seconds.
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))

from in_turn import Rank, rows_of, save_in_turn
from set_states import of_version, whole

import fastckpt
import fastckpt.dcp

# Before any fork: threads that torch keeps would not exist in a child.
torch.set_num_threads(1)
warnings.simplefilter("ignore")


def _store() -> str:
    """A file in which ranks meet, beside all that the shim looks at: who is killed removes nothing."""
    return os.path.join(tempfile.mkdtemp(prefix="ranks-", dir=os.path.dirname(os.environ["SHIM_ROOT"])), "store")


def _meet(rank: int, world: int, store: str) -> None:
    meeting = f"file://{store}"
    dist.init_process_group("gloo", meeting, timeout=timedelta(seconds=30), rank=rank, world_size=world)


def _ranks(path: str, step: int, armed: int) -> None:
    """Save on two ranks. This process is the armed one."""
    store = _store()
    other = os.fork()
    if other == 0:
        ctypes.CDLL(None).shim_arm(0, ctypes.c_long(0), 0, None)
        try:
            _rank(path, step, 1 - armed, store)
        finally:
            os._exit(0)
    try:
        _rank(path, step, armed, store)
    finally:
        os.waitpid(other, 0)


def _rank(path: str, step: int, rank: int, store: str) -> None:
    _meet(rank, 2, store)
    state = whole(step)
    state["w"] = DTensor.from_local(state["w"][rank : rank + 1], DeviceMesh("cpu", [0, 1]), [Shard(0)], run_check=False)
    fastckpt.dcp.save(state, path)


def _thread(path: str, step: int) -> None:
    fastckpt.dcp.async_save(whole(step), path, no_dist=True).result()


def _process(path: str, step: int) -> None:
    """It is the process that torch starts which is armed: see the constructor in ``shim.c``."""
    shim = ctypes.CDLL(None)
    shim.shim_armed.restype = ctypes.c_char_p
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1", "SHIM_ARM": shim.shim_armed().decode()}
    shim.shim_arm(0, ctypes.c_long(0), 0, None)
    _meet(0, 1, _store())
    fastckpt.dcp.async_save(whole(step), path, async_checkpointer_type=AsyncCheckpointerType.PROCESS).result()


def _step(path: str, step: int) -> None:
    fastckpt.CheckpointDirectory(path, keep_last=1).save(whole(step), step)


def _in_turn(path: str, step: int, *, durable: bool = True) -> None:
    """Two ranks one after the other. Between what they do, ``phase`` is opened, which the log shows."""
    phase = os.path.join(os.path.dirname(path), "phase")
    rest = {name: value for name, value in whole(step).items() if name != "w"}
    ranks = [Rank(rest, (part,)) for part in rows_of(("w",), whole(step)["w"], 2)]

    def between() -> None:
        os.close(os.open(phase, os.O_RDONLY))

    save_in_turn(path, ranks, between=between, options={"durable": durable})


SAVES: dict[str, Callable[[str, int], None]] = {
    "rank 0": lambda path, step: _ranks(path, step, 0),
    "rank 1": lambda path, step: _ranks(path, step, 1),
    "thread": _thread,
    "process": _process,
    "step": _step,
    "in turn": _in_turn,
    "in turn, not durable": lambda path, step: _in_turn(path, step, durable=False),
}


def save(path: str, version: int) -> None:
    way, step = of_version(version)
    try:
        SAVES[way](path, step)
    except CheckpointException as error:
        # What went wrong in a rank, as the host knows it.
        raise next(iter(error.failures.values()))[0] from error
