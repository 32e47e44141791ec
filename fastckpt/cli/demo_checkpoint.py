"""A checkpoint with the structure that nanochat's training script saves, filled with random numbers.

Plain torch: the names, shapes, dtypes, optimizer groups and JSON are those of a
GPT of the given depth after some steps of MuonAdamW, without any of its code.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastckpt.doctor.sizes import HEAD_SIZE, sizes_of_depth

if TYPE_CHECKING:
    import torch

STEP = 500
VOCAB = 32768
_GATE = 12
_SMEAR = 24


def write_checkpoint(directory: Path, *, depth: int) -> list[Path]:
    """Write ``model_000500.pt``, ``optim_000500_rank0.pt`` and ``meta_000500.json``; returns the two ``.pt``."""
    import torch

    generator = torch.Generator().manual_seed(depth)
    model = build_model(depth, generator)
    paths = [directory / f"model_{STEP:06d}.pt", directory / f"optim_{STEP:06d}_rank0.pt"]
    torch.save(model, paths[0])
    torch.save(build_optimizer(model, generator), paths[1])
    # As Python writes it: a bare Infinity, which is not JSON.
    meta = json.dumps(build_meta(depth), indent=2)
    (directory / f"meta_{STEP:06d}.json").write_text(meta, encoding="utf-8")
    return paths


def estimate(depth: int) -> int:
    """About how many bytes the files of such a checkpoint have together."""
    wide = sizes_of_depth(depth).n_embd
    blocks = 12 * depth * wide * wide
    embeddings = VOCAB * wide * (1 + -(-depth // 2))
    # Weights and AdamW's two moments of the embeddings are bf16, all else fp32; muon keeps one moment.
    return 3 * 2 * embeddings + 3 * 4 * VOCAB * wide + 2 * 4 * blocks


def build_model(depth: int, generator: torch.Generator) -> OrderedDict[str, torch.Tensor]:
    """The model's state dict, with the ``_metadata`` that ``Module.state_dict()`` attaches."""
    import torch

    wide = sizes_of_depth(depth).n_embd
    heads = wide // HEAD_SIZE
    gated = [layer for layer in range(depth) if layer % 2 == (depth - 1) % 2]

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(0.02).to(dtype)

    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    state["resid_lambdas"] = torch.ones(depth)
    state["x0_lambdas"] = torch.zeros(depth)
    state["smear_lambda"] = normal(1)
    state["backout_lambda"] = normal(1)
    state["transformer.wte.weight"] = normal(VOCAB, wide, dtype=torch.bfloat16)
    for layer in range(depth):
        prefix = f"transformer.h.{layer}"
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            state[f"{prefix}.attn.{name}.weight"] = normal(wide, wide)
        if layer in gated:
            state[f"{prefix}.attn.ve_gate.weight"] = normal(heads, _GATE)
        state[f"{prefix}.mlp.c_fc.weight"] = normal(4 * wide, wide)
        state[f"{prefix}.mlp.c_proj.weight"] = normal(wide, 4 * wide)
    state["lm_head.weight"] = normal(VOCAB, wide)
    state["smear_gate.weight"] = normal(1, _SMEAR)
    for layer in gated:
        state[f"value_embeds.{layer}.weight"] = normal(VOCAB, wide, dtype=torch.bfloat16)
    modules = {name.rpartition(".")[0] for name in state}
    state._metadata = OrderedDict((name, {"version": 1}) for name in sorted(modules))  # type: ignore[attr-defined]
    return state


def build_optimizer(model: OrderedDict[str, torch.Tensor], generator: torch.Generator) -> dict[str, Any]:
    """The optimizer's state dict: AdamW per parameter, muon stacked under the first id of each group."""
    import torch

    embeds = [name for name in model if name.startswith("value_embeds")]
    small = ["smear_gate.weight", "smear_lambda", "backout_lambda"]
    adamw = [["lm_head.weight"], ["transformer.wte.weight"], embeds, ["resid_lambdas"], ["x0_lambdas"], small]
    matrices: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in model.items():
        if name.startswith("transformer.h."):
            matrices.setdefault(tuple(tensor.shape), []).append(name)
    muon = [matrices[shape] for shape in sorted(matrices)]

    def like(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(1e-3).to(dtype)

    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    number = 0
    for names in adamw + muon:
        ids = list(range(number, number + len(names)))
        number += len(names)
        if names not in muon:
            options = {"kind": "adamw", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0}
            for key, name in zip(ids, names, strict=True):
                shape, dtype = model[name].shape, model[name].dtype
                moments = {moment: like(*shape, dtype=dtype) for moment in ("exp_avg", "exp_avg_sq")}
                state[key] = {"step": STEP, **moments}
        else:
            options = {"kind": "muon", "lr": 0.02, "momentum": 0.95, "ns_steps": 5, "beta2": 0.9, "weight_decay": 0.1}
            rows, cols = model[names[0]].shape
            second = (len(names), rows, 1) if rows >= cols else (len(names), 1, cols)
            state[ids[0]] = {
                "momentum_buffer": like(len(names), rows, cols, dtype=torch.float32),
                "second_momentum_buffer": like(*second, dtype=torch.float32),
            }
        groups.append({**options, "initial_lr": options["lr"], "params": ids})
    return {"state": state, "param_groups": groups}


def build_meta(depth: int) -> dict[str, Any]:
    """The JSON beside the two files."""
    wide = sizes_of_depth(depth).n_embd
    config = {
        "sequence_len": 2048,
        "vocab_size": VOCAB,
        "n_layer": depth,
        "n_head": wide // HEAD_SIZE,
        "n_kv_head": wide // HEAD_SIZE,
        "n_embd": wide,
        "window_pattern": "SSSL",
    }
    return {
        "step": STEP,
        "val_bpb": None,
        "model_config": config,
        "user_config": {"depth": depth, "model_tag": None},
        "device_batch_size": 32,
        "max_seq_len": 2048,
        "total_batch_size": 524288,
        "dataloader_state_dict": {"pq_idx": 0, "rg_idx": 4, "epoch": 1},
        "loop_state": {"min_val_bpb": float("inf"), "smooth_train_loss": 3.2, "total_training_time": 12.5},
    }
