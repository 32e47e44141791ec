"""The states that benchmarks save and load: shaped like real training, filled with random numbers."""

from __future__ import annotations

import torch


def gpt_state(depth: int = 12, *, vocab: int = 32768, seed: int = 0) -> dict[str, object]:
    """Model and optimizer of a GPT of this depth: bf16 embeddings, fp32 matrices, two moments.

    Sizes follow nanochat (d = 64 x depth rounded up to 128). Depth 12 without
    moments for the value embeddings has 1.68 GB.
    """
    torch.manual_seed(seed)
    width = -(-64 * depth // 128) * 128
    model: dict[str, torch.Tensor] = {
        "transformer.wte.weight": torch.randn(vocab, width, dtype=torch.bfloat16),
        "lm_head.weight": torch.randn(vocab, width),
        "resid_lambdas": torch.ones(depth),
        "smear_lambda": torch.ones(1),
    }
    for layer in range(depth):
        prefix = f"transformer.h.{layer}"
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            model[f"{prefix}.attn.{name}.weight"] = torch.randn(width, width)
        model[f"{prefix}.mlp.c_fc.weight"] = torch.randn(4 * width, width)
        model[f"{prefix}.mlp.c_proj.weight"] = torch.randn(width, 4 * width)
        if layer % 2 == (depth - 1) % 2:
            model[f"value_embeds.{layer}.weight"] = torch.randn(vocab, width, dtype=torch.bfloat16)
    moments: dict[int, dict[str, object]] = {}
    for number, (name, tensor) in enumerate(model.items()):
        if not name.startswith("value_embeds"):
            moments[number] = {"step": 500, "exp_avg": torch.randn_like(tensor), "exp_avg_sq": torch.rand_like(tensor)}
    groups = [{"lr": 0.02, "betas": (0.8, 0.95), "params": list(moments)}]
    return {"model": model, "optimizer": {"state": moments, "param_groups": groups}, "step": 500}


def tiny_tensors(count: int = 200_000) -> dict[str, torch.Tensor]:
    """``count`` tensors of 64 bytes each, every one with a storage of its own."""
    values = torch.randn(count, 16)
    return {f"layers.{index // 100}.scale.{index % 100}": values[index].clone() for index in range(count)}


def state_bytes(state: object) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(state_bytes, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(state_bytes, state))
    return 0
