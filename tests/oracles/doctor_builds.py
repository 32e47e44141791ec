"""Whole nanochat runs, small: steps of a model with the names and shapes of nanochat's own, by plain torch."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

LAYERS, WIDTH, HEADS, VOCAB, ROWS = 2, 16, 2, 61, 64
SPLIT_FROM = 1024
"""Elements from which an AdamW parameter is divided among ranks: the embeddings here have just as many."""

CONFIG: dict[str, Any] = {
    "sequence_len": 32,
    "vocab_size": VOCAB,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_kv_head": HEADS,
    "n_embd": WIDTH,
    "window_pattern": "L",
}


def shapes(layers: int = LAYERS, width: int = WIDTH, rows: int = ROWS) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model as nanochat has it since March 2026, in its order."""
    found: dict[str, tuple[int, ...]] = {"resid_lambdas": (layers,), "x0_lambdas": (layers,)}
    found |= {"smear_lambda": (1,), "backout_lambda": (1,), "transformer.wte.weight": (rows, width)}
    gated = [layer for layer in range(layers) if layer % 2 == (layers - 1) % 2]
    for layer in range(layers):
        block = f"transformer.h.{layer}"
        found |= {f"{block}.attn.{name}.weight": (width, width) for name in ("c_q", "c_k", "c_v", "c_proj")}
        if layer in gated:
            found[f"{block}.attn.ve_gate.weight"] = (HEADS, 12)
        found |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_proj.weight": (width, 4 * width)}
    found |= {"lm_head.weight": (rows, width), "smear_gate.weight": (1, 24)}
    return found | {f"value_embeds.{layer}.weight": (rows, width) for layer in gated}


def fill(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(step: int, **sizes: int) -> Any:
    state = OrderedDict((name, fill(shape, step + at)) for at, (name, shape) in enumerate(shapes(**sizes).items()))
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


def optimizer(step: int, rank: int = 0, world: int = 1, **sizes: int) -> dict[str, Any]:
    """One rank's state of MuonAdamW."""
    all_shapes = shapes(**sizes)
    values = [name for name in all_shapes if name.startswith("value_embeds")]
    adamw = [["lm_head.weight"], ["transformer.wte.weight"], values, ["resid_lambdas"], ["x0_lambdas"]]
    adamw.append(["smear_gate.weight", "smear_lambda", "backout_lambda"])
    matrices = [name for name in all_shapes if name.startswith("transformer.h.")]
    muon = [[m for m in matrices if all_shapes[m] == s] for s in sorted({all_shapes[m] for m in matrices})]
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    number = 0
    for group in adamw:
        ids = list(range(number, number + len(group)))
        for key, name in zip(ids, group, strict=True):
            shape = all_shapes[name]
            own = (shape[0] // world, *shape[1:]) if math.prod(shape) >= SPLIT_FROM else shape
            seed = 1000 * key + step + (rank if own != shape else 0)
            state[key] = {"step": step, "exp_avg": fill(own, seed), "exp_avg_sq": fill(own, seed + 500).abs()}
        groups.append({"kind": "adamw", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "params": ids})
        number += len(group)
    for group in muon:
        ids, shape = list(range(number, number + len(group))), all_shapes[group[0]]
        share = -(-len(group) // world)
        owned = max(0, min(share, len(group) - rank * share))
        second = (shape[0], 1) if shape[0] >= shape[1] else (1, shape[1])
        held = {"momentum_buffer": fill((share, *shape), 1000 * number + step + rank)}
        held["second_momentum_buffer"] = fill((share, *second), 1000 * number + step + rank + 500).abs()
        for buffer in held.values():
            buffer[owned:] = 0
        state[number] = held
        groups.append({"kind": "muon", "lr": 0.02, "momentum": 0.85, "ns_steps": 5, "beta2": 0.9, "params": ids})
        number += len(group)
    return {"state": state, "param_groups": groups}


def meta(step: int, **config: Any) -> dict[str, Any]:
    return {
        "step": step,
        "val_bpb": 1.5,
        "model_config": CONFIG | config,
        "user_config": {"run": "a run", "depth": LAYERS, "fp8": False, "model_tag": None, "resume_from_step": -1},
        "device_batch_size": 1,
        "max_seq_len": 32,
        "total_batch_size": 512,
        "dataloader_state_dict": {"pq_idx": 1, "rg_idx": step, "epoch": 1},
        "loop_state": {"min_val_bpb": 1.25, "smooth_train_loss": 2.5, "total_training_time": 0},
    }


def write_meta(directory: Path, step: int, values: Any) -> Path:
    path = directory / f"meta_{step:06d}.json"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
    return path


def write_step(directory: Path, step: int, world: int = 1) -> None:
    """One step, in the order in which nanochat writes it."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(model(step), directory / f"model_{step:06d}.pt")
    write_meta(directory, step, meta(step))
    for rank in range(world):
        torch.save(optimizer(step, rank, world), directory / f"optim_{step:06d}_rank{rank}.pt")


def cut(path: Path, keep: float = 0.5) -> None:
    """What an interrupted save leaves: the beginning."""
    with open(path, "r+b") as file:
        file.truncate(int(path.stat().st_size * keep))


def flip(path: Path, at: int | None = None) -> None:
    """One bit in the middle, where the tensors are."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2 if at is None else at)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0x10]))
