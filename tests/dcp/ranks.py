"""One rank of a distributed save or load, over gloo on the CPU.

    ranks.py JOB KIND RANK WORLD PORT DIR

JOB is ``save``, ``async``, ``process`` or ``load``; KIND is how the model is
spread: ``plain``, ``fsdp``, ``tp`` (tensor parallel below FSDP) or ``hsdp``.
Rank 0 of a save leaves what every tensor is as a whole in ``DIR.truth``; every
rank of a load compares with it, bit for bit.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh

import fastckpt.dcp

DIM, LAYERS = 12, 2


def build(kind: str, world: int, seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model with uneven sizes, spread over the ranks, after one step of AdamW."""
    torch.manual_seed(seed)
    blocks = [
        torch.nn.Sequential(torch.nn.Linear(DIM, 36), torch.nn.GELU(), torch.nn.Linear(36, DIM)) for _ in range(LAYERS)
    ]
    net = torch.nn.Sequential(*blocks, torch.nn.Linear(DIM, 5))
    if kind != "plain":
        from torch.distributed.fsdp import fully_shard

        if kind == "tp":
            from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

            both = init_device_mesh("cpu", (max(world // 2, 1), min(world, 2)), mesh_dim_names=("dp", "tp"))
            for block in blocks:
                parallelize_module(block, both["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            mesh = both["dp"]
        elif kind == "hsdp":
            sizes = (2, world // 2) if world > 1 else (1, 1)
            mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("replica", "shard"))
        else:
            mesh = init_device_mesh("cpu", (world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net(torch.randn(4, DIM)).square().sum().backward()
    optimizer.step()
    return net, optimizer


def state_of(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """What people save: sharded tensors, a whole one, and all sorts of plain values."""
    model, optim = get_state_dict(net, optimizer)
    config = {"lr": 0.1 * step, "name": "é", "shape": (step, None)}
    more = {"step": step, "rng": torch.arange(16) * step, "config": config, "seen": {1, step}}
    return {"model": model, "optim": optim, "empty": torch.zeros(0, 3), **more}


def whole(value: Any) -> Any:
    """A state with every distributed tensor put together, which is a collective call."""
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(each) for key, each in value.items()}
    return [whole(each) for each in value] if isinstance(value, list) else value


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two states are not the same, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}.{key}" for key in a.keys() ^ b.keys()]
        return found + [each for key in a.keys() & b.keys() for each in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [each for number in range(len(a)) for each in differences(a[number], b[number], f"{path}.{number}")]
    return [] if a == b and type(a) is type(b) else [path]


def main() -> None:
    warnings.simplefilter("ignore")
    job, kind, rank, world, port, place = sys.argv[1:7]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": world}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    net, optimizer = build(kind, int(world), seed=1 if job == "load" else 0)
    state = state_of(net, optimizer, 0 if job == "load" else 7)
    if job == "load":
        unpickled: list[str] = []
        sys.addaudithook(lambda event, args: unpickled.append(str(args)) if event == "pickle.find_class" else None)
        fastckpt.dcp.load(state, place)
        # torch's planner unpickles what the reader made of objects: nothing but types that it made itself.
        own = ("set", "torch", "collections")
        strange = [each for each in unpickled if not any(word in each for word in own)]
        assert not strange, strange
        found = differences(whole(state), torch.load(f"{place}.truth", weights_only=False))
        assert not found, found
    else:
        if job == "save":
            fastckpt.dcp.save(state, place)
        elif job == "async":
            fastckpt.dcp.async_save(state, place).result()
        else:
            from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

            fastckpt.dcp.async_save(state, place, async_checkpointer_type=AsyncCheckpointerType.PROCESS).result()
        full = whole(state)
        if rank == "0":
            torch.save(full, f"{place}.truth")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
