"""torchtitan's CheckpointManager with `fastckpt.dcp` as its storage, and a loop that can be killed at any time.

    torchrun --nproc-per-node 2 examples/train_torchtitan.py --directory run --steps 20

In a training of torchtitan's own, name the class in the configuration:
``checkpoint=FastckptCheckpointManager.Config(enable=True, async_mode="async")``.
Written for torchtitan 0.3.0, which hands its state and a directory to ``dcp_save`` and ``dcp_load``, and looks in
``_find_load_step`` for the ``.metadata`` of torch's own storage. ``async_with_pinned_mem`` needs a GPU; it was not run.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.fsdp import fully_shard
from torchtitan.components.checkpointer.dcp import MODEL, AsyncMode, CheckpointManager

import fastckpt


class FastckptCheckpointManager(CheckpointManager):
    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        pass

    def dcp_save(self, state_dict, checkpoint_id, async_mode, enable_garbage_collection=False, to_hf=False):
        if to_hf:  # For other programs to read.
            return super().dcp_save(state_dict, checkpoint_id, async_mode, enable_garbage_collection, to_hf)
        if async_mode == AsyncMode.DISABLED:
            return fastckpt.dcp.save(state_dict, checkpoint_id)
        options = {"process_group": self.pg}
        if async_mode == AsyncMode.ASYNC_WITH_PINNED_MEM:
            options |= {"async_checkpointer_type": AsyncCheckpointerType.PROCESS, "async_stager": self.stager}
        return fastckpt.dcp.async_save(state_dict, checkpoint_id, **options)

    def dcp_load(self, state_dict, checkpoint_id, from_hf, from_quantized):
        if from_hf or not fastckpt.dcp.FastckptReader.validate_checkpoint_id(checkpoint_id):
            return super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
        fastckpt.dcp.load(state_dict, checkpoint_id)
        if MODEL in self.states:
            self.states[MODEL].load_state_dict(state_dict)

    def _find_load_step(self, folder=""):
        """The newest step that is whole. One rank reads all of it, and tells the others."""
        found = [-1]
        if dist.get_rank() == 0:
            newest = fastckpt.find_last_whole(folder or self.folder)
            found = [int(newest.rpartition("-")[2]) if newest is not None else -1]
        dist.broadcast_object_list(found)
        return found[0]


class Progress:
    """How far the training is, as torchtitan keeps it."""

    def __init__(self):
        self.step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


class Optimizer:
    """The state of an optimizer by the names of parameters, as torchtitan's own container gives it."""

    def __init__(self, model, optimizer):
        self.parts = (model, optimizer)

    def state_dict(self):
        return get_optimizer_state_dict(*self.parts)

    def load_state_dict(self, state):
        set_optimizer_state_dict(*self.parts, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default="torchtitan-run")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--async-mode", default="async")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    progress = Progress()
    config = FastckptCheckpointManager.Config(enable=True, interval=2, keep_latest_k=3, async_mode=options.async_mode)
    manager = config.build(
        dataloader=None,
        model_parts=[model],
        optimizers=Optimizer(model, optimizer),
        lr_schedulers=Progress(),
        states={"train_state": progress},
        sd_adapter=None,
        base_folder=options.directory,
    )
    print("going on" if manager.load() else "beginning", progress.step, flush=True)
    while progress.step < options.steps:
        progress.step += 1
        inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(progress.step))
        (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        manager.save(progress.step)
    manager.maybe_wait_for_saving()
    fastckpt.dcp.save({"model": model.state_dict()}, os.path.join(options.directory, "done"))
    manager.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
