"""Small checkpoints of several files in the shape that each program gives them."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch


def write_shards(directory: Path, count: int = 3, *, stem: str = "model", suffix: str = "safetensors") -> Path:
    """A model in shards with an index, each with two tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(1, count + 1):
        name = f"{stem}-{shard:05d}-of-{count:05d}.{suffix}"
        tensors = {f"layers.{shard}.{part}": torch.full((16, 4), float(shard)) for part in ("q", "k")}
        if suffix == "safetensors":
            safetensors.torch.save_file(tensors, directory / name)
        else:
            torch.save(tensors, directory / name)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return directory


def write_trainer_step(directory: Path, step: int, *, ranks: int = 1) -> Path:
    """What transformers' Trainer saves at a step."""
    place = directory / f"checkpoint-{step}"
    place.mkdir(parents=True)
    safetensors.torch.save_file({"w": torch.full((64,), float(step))}, place / "model.safetensors")
    torch.save({"state": {0: {"exp_avg": torch.ones(64)}}, "param_groups": []}, place / "optimizer.pt")
    torch.save({"last_epoch": step}, place / "scheduler.pt")
    names = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    for name in names:
        torch.save({"cpu": torch.zeros(8, dtype=torch.uint8)}, place / name)
    torch.save({"lr": 0.1}, place / "training_args.bin")
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return place


def write_accelerate_step(directory: Path, step: int, *, ranks: int = 2) -> Path:
    """What accelerate's save_state saves."""
    place = directory / f"checkpoint_{step}"
    place.mkdir(parents=True)
    safetensors.torch.save_file({"w": torch.full((64,), float(step))}, place / "model.safetensors")
    torch.save({"state": {}}, place / "optimizer.bin")
    torch.save({"last_epoch": step}, place / "scheduler.bin")
    for rank in range(ranks):
        torch.save({"step": step}, place / f"random_states_{rank}.pkl")
    return place


def write_deepspeed_step(directory: Path, step: int, *, ranks: int = 2, tensor_ranks: int = 1) -> Path:
    """What DeepSpeed saves with ZeRO stage 1 or 2."""
    place = directory / f"global_step{step}"
    place.mkdir(parents=True)
    for tensor_rank in range(tensor_ranks):
        state = {"module": {"w": torch.ones(8)}, "dp_world_size": ranks, "global_steps": step}
        torch.save(state, place / f"mp_rank_{tensor_rank:02d}_model_states.pt")
        for rank in range(ranks):
            name = f"zero_pp_rank_{rank}_mp_rank_{tensor_rank:02d}_optim_states.pt"
            torch.save({"optimizer_state_dict": {"v": torch.zeros(8)}}, place / name)
    (directory / "latest").write_text(place.name)
    return place


def flip(path: Path, at: int = -100) -> None:
    """One bit of a file flips."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    """Half of a file is gone."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
