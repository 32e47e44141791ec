"""Checkpoint directories as the revisions of nanochat wrote them, small, made with plain torch."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

V, D = 128, 8
"""Rows and columns of lm_head."""
NUMEL = V * D  # 1024: the least that is split among ranks.


def fill(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(*shape, generator=generator).to(dtype)


def meta_of(step: int | None, **more: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {} if step is None else {"step": step, "val_bpb": None}
    return meta | {"model_config": {"sequence_len": 16, "vocab_size": V - 3, "n_layer": 2}} | more


BASE_META: dict[str, Any] = {
    "user_config": {"run": "dummy", "target_flops": -1.0},
    "dataloader_state_dict": {"pq_idx": 0, "rg_idx": 1, "epoch": 1},
    "loop_state": {"min_val_bpb": math.inf, "smooth_train_loss": 2.5, "total_training_time": 0},
}


def state_dict(
    *, names: dict[str, tuple[int, ...]] | None = None, wte: torch.dtype = torch.bfloat16, vocab: int = V
) -> Any:
    """A model: an OrderedDict that carries ``_metadata``."""
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, D)}
    shapes |= {f"transformer.h.{i}.attn.c_q.weight": (D, D) for i in range(2)}
    shapes |= {"lm_head.weight": (vocab, D)} | (names or {})
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for seed, (name, shape) in enumerate(shapes.items()):
        embedding = "wte" in name or "value_embeds" in name
        state[name] = fill(*shape, dtype=wte if embedding else torch.float32, seed=seed)
    state._metadata = OrderedDict({"": {"version": 1}, "transformer": {"version": 1}})  # type: ignore[attr-defined]
    return state


def head_model() -> Any:
    return state_dict(
        names={
            "resid_lambdas": (2,),
            "x0_lambdas": (2,),
            "smear_lambda": (1,),
            "backout_lambda": (1,),
            "transformer.h.1.attn.ve_gate.weight": (1, 12),
            "smear_gate.weight": (1, 24),
            "value_embeds.1.weight": (V, D),
        }
    )


def adam_group(params: list[int], **more: Any) -> dict[str, Any]:
    return {
        "lr": 0.0043,
        "betas": (0.8, 0.96),
        "eps": 1e-10,
        "weight_decay": 0.01,
        "initial_lr": 0.004,
        **more,
        "params": params,
    }


def head_optimizer(rank: int = 0, world: int = 1, step: int = 4) -> dict[str, Any]:
    """MuonAdamW: one dict, int keys with gaps, python int steps."""

    def moments(key: int, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        shards = world if math.prod(shape) >= NUMEL else 1
        own = (shape[0] // shards, *shape[1:])
        seed = 10 * key + (rank if shards > 1 else 0)
        return {
            "step": step,
            "exp_avg": fill(*own, dtype=dtype, seed=seed),
            "exp_avg_sq": fill(*own, dtype=dtype, seed=seed + 5),
        }

    state: dict[int, Any] = {0: moments(0, V, D), 1: moments(1, V, D, dtype=torch.bfloat16), 2: moments(2, 2)}
    rows = -(-4 // world)
    state[7] = {
        "momentum_buffer": fill(rows, D, D, seed=70 + rank),
        "second_momentum_buffer": fill(rows, D, 1, seed=71 + rank),
    }
    muon = {"kind": "muon", "lr": 0.02, "momentum": 0.85, "ns_steps": 5, "beta2": 0.9, "weight_decay": 0.11}
    groups = [adam_group([key], kind="adamw") for key in range(3)]
    return {"state": state, "param_groups": [*groups, {**muon, "initial_lr": 0.02, "params": [7, 8, 9, 10]}]}


def old_optimizers(
    rank: int = 0,
    world: int = 1,
    *,
    step: torch.Tensor,
    muon: Callable[[int], dict[str, Any]],
    muon_group: dict[str, Any],
    adam: dict[str, Any] | None = None,
    vocab: int = V,
) -> list[dict[str, Any]]:
    """The list of AdamW and Muon, as until January 2026."""
    moments = {
        key: {
            "step": step.clone(),
            "exp_avg": fill(vocab // world, D, dtype=dtype, seed=10 * key + rank),
            "exp_avg_sq": fill(vocab // world, D, dtype=dtype, seed=10 * key + rank + 5),
        }
        for key, dtype in ((0, torch.float32), (1, torch.bfloat16))
    }
    first = {"state": moments, "param_groups": [adam_group([0], **(adam or {})), adam_group([1], **(adam or {}))]}
    owned = {key: muon(key) for key in range(4) if key % world == rank}
    return [first, {"state": owned, "param_groups": [{**muon_group, "params": [0, 1, 2, 3]}]}]


def write_step(
    directory: Path, step: int, model: Any = None, optimizers: dict[int | None, Any] | None = None, meta: Any = None
) -> None:
    """One step, written as ``save_checkpoint`` writes it."""
    directory.mkdir(parents=True, exist_ok=True)
    if model is not None:
        torch.save(model, directory / f"model_{step:06d}.pt")
    if meta is not None:
        with open(directory / f"meta_{step:06d}.json", "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=2)
    for rank, state in (optimizers or {}).items():
        suffix = "" if rank is None else f"_rank{rank}"
        torch.save(state, directory / f"optim_{step:06d}{suffix}.pt")


def write_head(directory: Path, step: int = 4, world: int = 1) -> Path:
    """A step of today's base_train."""
    optimizers = {rank: head_optimizer(rank, world, step) for rank in range(world)}
    write_step(directory, step, head_model(), optimizers, meta_of(step, **BASE_META))
    return directory


def _oct_2025(directory: Path) -> None:
    vocab = V - 3
    optimizers = old_optimizers(
        step=torch.tensor(2.0),
        muon=lambda key: {"momentum_buffer": fill(D, D, seed=key)},
        muon_group={"lr": 0.02, "momentum": 0.95, "nesterov": True, "ns_steps": 5},
        adam={"amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "fused": True},
        vocab=vocab,
    )
    write_step(directory, 2, state_dict(vocab=vocab), {None: optimizers}, meta_of(2))


def _dist_muon(key: int) -> dict[str, Any]:
    return {"momentum_buffer": fill(D, D, seed=key)}


def _oct_2025_ranks(directory: Path) -> None:
    group = {"zero_buffer": torch.zeros(D, D), "lr": 0.02, "momentum": 0.95, "nesterov": True, "ns_steps": 5}
    optimizers = old_optimizers(0, 4, step=torch.tensor(2), muon=_dist_muon, muon_group=group)
    write_step(directory, 2, state_dict(), {None: optimizers}, meta_of(2))


def _nov_2025(directory: Path) -> None:
    group = {"zero_buffer": torch.zeros(D, D), "lr": 0.02, "momentum": 0.95, "nesterov": True, "ns_steps": 5}
    optimizers = {
        rank: old_optimizers(rank, 2, step=torch.tensor(30), muon=_dist_muon, muon_group=group) for rank in range(2)
    }
    write_step(directory, 30, state_dict(), optimizers, meta_of(30, **BASE_META))  # type: ignore[arg-type]


def _jan_2026_second_momentum(directory: Path) -> None:
    def muon(key: int) -> dict[str, Any]:
        second = fill(D, 1, dtype=torch.bfloat16, seed=key)
        return {"momentum_buffer": fill(D, D, seed=key), "second_momentum_buffer": second}

    group = {"lr": 0.02, "momentum": 0.95, "beta2": 0.9, "weight_decay": 0.1, "nesterov": True, "ns_steps": 5}
    optimizers = old_optimizers(step=torch.tensor(3.0), muon=muon, muon_group=group)
    model = state_dict(names={"resid_lambdas": (2,), "x0_lambdas": (2,)})
    write_step(directory, 3, model, {0: optimizers}, meta_of(3, **BASE_META))


def _jan_2026_stacked(directory: Path) -> None:
    group = {"chunk_size": 2, "lr": 0.02, "momentum": 0.95, "beta2": 0.9, "weight_decay": 0.1, "ns_steps": 5}
    optimizers: dict[int | None, Any] = {}
    for rank in range(2):
        first, second = old_optimizers(rank, 2, step=torch.tensor(5), muon=_dist_muon, muon_group=group)
        second["state"] = {0: {"momentum_buffer": fill(2, D, D), "second_momentum_buffer": fill(2, D, 1)}}
        optimizers[rank] = [first, second]
    names = {"value_embeds.1.weight": (V, D), "bigram_embed.embed.weight": (64, D), "bigram_lambdas": (2,)}
    write_step(directory, 5, state_dict(names=names), optimizers, meta_of(5, **BASE_META))


def _compiled(directory: Path) -> None:
    state = head_model()
    prefixed = OrderedDict((f"_orig_mod.{name}", tensor) for name, tensor in state.items())
    write_step(directory, 4, prefixed, {r: head_optimizer(r, 2) for r in range(2)}, meta_of(4, **BASE_META))


def _old_sft(directory: Path) -> None:
    write_step(directory, 700, state_dict(), None, meta_of(700, val_loss=1.01, metrics={"mmlu": 0.3, "arc": None}))


def _rl(directory: Path) -> None:
    for step in (60, 1234567):
        write_step(directory, step, head_model(), None, meta_of(None))


def _many_steps(directory: Path) -> None:
    for step in (2, 4, 1000000):
        write_head(directory, step, 2)


def _none_saved(directory: Path) -> None:
    write_step(directory, 4, head_model(), {0: None}, meta_of(4))


def _file_object(directory: Path) -> None:
    write_step(directory, 4, None, None, meta_of(4))
    with open(directory / "model_000004.pt", "wb") as file:
        torch.save(head_model(), file)


def _old_container(directory: Path) -> None:
    write_step(directory, 4, None, None, meta_of(4))
    torch.save(head_model(), directory / "model_000004.pt", _use_new_zipfile_serialization=False)


BUILDS: dict[str, Callable[[Path], object]] = {
    "2025-10 one rank": _oct_2025,
    "2025-10 ranks": _oct_2025_ranks,
    "2025-11 list per rank": _nov_2025,
    "2026-01 second momentum": _jan_2026_second_momentum,
    "2026-01 stacked": _jan_2026_stacked,
    "head": write_head,
    "head 4 ranks": lambda directory: write_head(directory, world=4),
    "steps": _many_steps,
    "compiled": _compiled,
    "sft 2025": _old_sft,
    "rl": _rl,
    "none": _none_saved,
    "file object": _file_object,
    "old container": _old_container,
}
"""Directories by name: each of the formats that nanochat has written."""
