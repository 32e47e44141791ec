"""One rank of distributed saves and loads; `RankGroup` starts it, and gives it the jobs at the end of this file.

A model is spread in one of four ways: ``plain`` (not at all), ``fsdp``, ``tp`` (tensor parallel below FSDP) or
``hsdp``. Rank 0 of a save leaves what every tensor is as a whole in ``PLACE.truth``; every rank of a load compares with
it, bit for bit.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import unpickling
from rank_group import serve
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fastckpt.dcp

warnings.simplefilter("ignore")
DIM, LAYERS, ROWS = 12, 2, 5
NAMES = "bool uint8 uint16 uint32 uint64 int8 bfloat16 float16 float64 complex64 "
NAMES += "float8_e4m3fn float8_e5m2 float8_e8m0fnu float4_e2m1fn_x2"
DTYPES = [getattr(torch, name) for name in NAMES.split() if hasattr(torch, name)]


@cache
def mesh(kind: str) -> DeviceMesh:
    """How the ranks stand."""
    world = dist.get_world_size()
    if kind == "tp":
        return init_device_mesh("cpu", (max(world // 2, 1), min(world, 2)), mesh_dim_names=("dp", "tp"))
    if kind == "hsdp":
        sizes = (2, world // 2) if world > 1 else (1, 1)
        return init_device_mesh("cpu", sizes, mesh_dim_names=("replica", "shard"))
    return init_device_mesh("cpu", (world,))


def build(kind: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model with uneven sizes, spread over the ranks, after one step of AdamW."""
    torch.manual_seed(0)
    blocks = [
        torch.nn.Sequential(torch.nn.Linear(DIM, 36), torch.nn.GELU(), torch.nn.Linear(36, DIM)) for _ in range(LAYERS)
    ]
    net = torch.nn.Sequential(*blocks, torch.nn.Linear(DIM, ROWS))
    if kind != "plain":
        ranks = mesh(kind)
        if kind == "tp":
            for block in blocks:
                parallelize_module(block, ranks["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            ranks = ranks["dp"]
        for block in blocks:
            fully_shard(block, mesh=ranks)
        fully_shard(net, mesh=ranks)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net(torch.randn(4, DIM)).square().sum().backward()
    optimizer.step()
    return net, optimizer


def of_bytes(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bits, those of NaNs among them, where the type has no bits that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    top = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, top, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape) if math.prod(shape) else torch.empty(shape, dtype=dtype)


def rows(whole: torch.Tensor) -> DTensor:
    """A tensor whose rows are spread over all ranks: uneven, and none for the last of four."""
    size = -(-len(whole) // dist.get_world_size())
    own = whole[dist.get_rank() * size :][:size].clone()
    return DTensor.from_local(own, mesh("rows"), [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())


@cache
def truth_of_rows() -> dict[str, torch.Tensor]:
    """What `rows` are as a whole."""
    wholes = {str(dtype): of_bytes(dtype, (ROWS, 3), seed) for seed, dtype in enumerate(DTYPES)}
    return {**wholes, "no rows": torch.empty(0, 3), "one row": of_bytes(torch.float32, (1, 7), 99)}


@cache
def state_of(kind: str) -> dict[str, Any]:
    """What people save: sharded tensors, whole ones of every type, and all sorts of plain values."""
    model, optim = get_state_dict(*build(kind))
    wholes = {str(dtype): of_bytes(dtype, (2, 4), seed) for seed, dtype in enumerate(DTYPES)}
    return {
        "model": model,
        "optim": optim,
        "rows": {name: rows(whole) for name, whole in truth_of_rows().items()},
        "whole": {**wholes, "empty": torch.zeros(0, 3), "scalar": torch.tensor(0.5), "rng": torch.arange(16)},
        "config": {"lr": 0.7, "name": "é", "shape": (7, None)},
        "step": 7,
        "seen": {1, 7},
    }


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, which are its memory if it lies in one piece."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def emptied(value: Any) -> Any:
    """A state of the same shape, in which nothing is as it was."""
    if isinstance(value, DTensor):
        own, shape, stride = emptied(value.to_local()), value.shape, value.stride()
        return DTensor.from_local(own, value.device_mesh, value.placements, run_check=False, shape=shape, stride=stride)
    if isinstance(value, torch.Tensor):
        other = torch.empty_like(value, memory_format=torch.contiguous_format)
        _bits(other).fill_(1)
        return other
    if isinstance(value, dict):
        return {key: emptied(each) for key, each in value.items()}
    return [emptied(each) for each in value] if isinstance(value, list) else None


def whole(value: Any) -> Any:
    """A state with every distributed tensor put together, which is a collective call."""
    if isinstance(value, DTensor):
        if value.device_mesh is not mesh("rows"):
            return value.full_tensor()
        # Of types that gloo does not send: their bytes.
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, _bits(value.to_local()))
        return torch.cat(parts).view(value.dtype).view(value.shape)
    if isinstance(value, dict):
        return {key: whole(each) for key, each in value.items()}
    return [whole(each) for each in value] if isinstance(value, list) else value


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two states are not the same, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}.{key}" for key in a.keys() ^ b.keys()]
        return found + [each for key in a.keys() & b.keys() for each in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [each for number in range(len(a)) for each in differences(a[number], b[number], f"{path}.{number}")]
    return [] if a == b and type(a) is type(b) else [path]


# --- jobs -------------------------------------------------------------------------------------------------------------


def save(kind: str, how: str, place: str) -> dict[str, Any]:
    """Save a state; how its tensors lie on this rank, and what was unpickled meanwhile."""
    state = state_of(kind)
    with unpickling.watched(Path(place)) as unpickled:
        if how == "sync":
            fastckpt.dcp.save(state, place)
        else:
            behind = {"thread": AsyncCheckpointerType.THREAD, "process": AsyncCheckpointerType.PROCESS}[how]
            fastckpt.dcp.async_save(state, place, async_checkpointer_type=behind).result()
    full = whole(state)
    if dist.get_rank() == 0:
        torch.save(full, f"{place}.truth")
    dist.barrier()
    spread = [each for each in (*state["model"].values(), *state["rows"].values()) if isinstance(each, DTensor)]
    return {
        "strided": any("_StridedShard" in type(how).__name__ for each in spread for how in each.placements),
        "empty": sum(not each.to_local().numel() for each in spread if each.numel()),
        "unpickled": list(unpickled),
    }


def load(kind: str, place: str) -> dict[str, Any]:
    """Load it into a state that is spread as this kind is, and compare."""
    state = emptied(state_of(kind))
    with unpickling.watched(Path(place)) as unpickled:
        fastckpt.dcp.load(state, place)
    return {
        "differences": differences(whole(state), torch.load(f"{place}.truth", weights_only=False)),
        "unpickled": list(unpickled),
    }


def load_some(kind: str, place: str, names: list[str]) -> list[Any]:
    """Load only these tensors of the model; the error of this rank, or what differs."""
    state = emptied({"model": {name: state_of(kind)["model"][name] for name in names}})
    try:
        fastckpt.dcp.load(state, place)
    except torch.distributed.checkpoint.api.CheckpointException as error:
        return [str(each) for each, _ in error.failures.values()]
    truth = torch.load(f"{place}.truth", weights_only=False)["model"]
    return differences(whole(state)["model"], {name: truth[name] for name in names})


if __name__ == "__mp_main__":
    # The process of an async save. Nobody asks it for what it has seen.
    unpickling.watch_into(os.environ["STRANGE_PICKLES"])
if __name__ == "__main__":
    os.environ["STRANGE_PICKLES"] = os.path.join(os.path.dirname(sys.argv[3]), "pickles")
    serve({"save": save, "load": load, "load_some": load_some})
