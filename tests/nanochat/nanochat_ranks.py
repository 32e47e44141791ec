"""A small model of nanochat's structure, its optimizer's whole state, and what each of W ranks saves of that.

Written from the description of the format and not from fastckpt: what
`reshard` makes of W ranks must be what M ranks would have saved.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from nanochat_builds import BASE_META, fill, write_step

V, D, LAYERS = 128, 32, 5
STEP = 12
META: dict[str, Any] = {"step": STEP, "model_config": {"vocab_size": V - 3, "n_layer": LAYERS}, **BASE_META}

Shape = tuple[int, ...]


def model_shapes() -> dict[str, Shape]:
    """In the order of a model file. Muon has groups of 3, 20, 5 and 5 parameters: no number of ranks divides all."""
    shapes: dict[str, Shape] = {"resid_lambdas": (LAYERS,), "x0_lambdas": (LAYERS,)}
    shapes |= {"smear_lambda": (1,), "backout_lambda": (1,), "transformer.wte.weight": (V, D)}
    value_layers = [layer for layer in range(LAYERS) if layer % 2 == (LAYERS - 1) % 2]
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        shapes |= {f"{block}.attn.{name}.weight": (D, D) for name in ("c_q", "c_k", "c_v", "c_proj")}
        if layer in value_layers:
            shapes[f"{block}.attn.ve_gate.weight"] = (2, 12)
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * D, D), f"{block}.mlp.c_proj.weight": (D, 4 * D)}
    shapes |= {"lm_head.weight": (V, D), "smear_gate.weight": (1, 24)}
    return shapes | {f"value_embeds.{layer}.weight": (V, D) for layer in value_layers}


def adamw_groups(shapes: dict[str, Shape]) -> list[list[str]]:
    values = [name for name in shapes if name.startswith("value_embeds")]
    groups = [["lm_head.weight"], ["transformer.wte.weight"], values, ["resid_lambdas"], ["x0_lambdas"]]
    return [*groups, ["smear_gate.weight", "smear_lambda", "backout_lambda"]]


def muon_groups(shapes: dict[str, Shape]) -> list[list[str]]:
    matrices = [name for name in shapes if name.startswith("transformer.h.")]
    return [[n for n in matrices if shapes[n] == shape] for shape in sorted({shapes[n] for n in matrices})]


def model() -> dict[str, torch.Tensor]:
    return {name: fill(*shape, dtype=dtype_of(name), seed=n) for n, (name, shape) in enumerate(model_shapes().items())}


def dtype_of(name: str) -> torch.dtype:
    return torch.bfloat16 if "wte" in name or "value_embeds" in name else torch.float32


def whole_state() -> dict[str, dict[str, torch.Tensor]]:
    """The state of every parameter by itself, as if there were one rank and no stacks."""
    shapes = model_shapes()
    state = {}
    for seed, name in enumerate(name for group in adamw_groups(shapes) for name in group):
        dtype, shape = dtype_of(name), shapes[name]
        moments = {"exp_avg": fill(*shape, dtype=dtype, seed=seed), "exp_avg_sq": fill(*shape, dtype=dtype, seed=-seed)}
        state[name] = moments
    for seed, name in enumerate(name for group in muon_groups(shapes) for name in group):
        rows, columns = shapes[name]
        factor = (rows, 1) if rows >= columns else (1, columns)
        state[name] = {
            "momentum_buffer": fill(rows, columns, seed=1000 + seed),
            "second_momentum_buffer": fill(*factor, seed=2000 + seed),
        }
    return state


Whole = dict[str, dict[str, torch.Tensor]]


def _adamw(whole: Whole, rank: int, world: int, step: Any, first_id: int = 0) -> dict[int, Any]:
    names = [name for group in adamw_groups(model_shapes()) for name in group]
    state = {}
    for number, name in enumerate(names, first_id):
        held = {"step": step.clone() if isinstance(step, torch.Tensor) else step}
        for key, value in whole[name].items():
            share = value.shape[0] // world
            large = math.prod(value.shape) >= 1024
            held[key] = value[rank * share : (rank + 1) * share].clone() if large else value.clone()
        state[number] = held
    return state


def _stacked(whole: Whole, rank: int, world: int, first_id: int) -> dict[int, Any]:
    state = {}
    for group in muon_groups(model_shapes()):
        share = math.ceil(len(group) / world)
        own = group[rank * share : (rank + 1) * share]
        held = {}
        for key, sample in whole[group[0]].items():
            held[key] = torch.zeros(share, *sample.shape)
            for row, name in enumerate(own):
                held[key][row] = whole[name][key]
        state[first_id] = held
        first_id += len(group)
    return state


def _groups(names: list[list[str]], options: list[dict[str, Any]], first_id: int = 0) -> list[dict[str, Any]]:
    groups = []
    for members, each in zip(names, options, strict=True):
        groups.append({**each, "params": list(range(first_id, first_id + len(members)))})
        first_id += len(members)
    return groups


ADAMW = {"lr": 0.004, "betas": (0.8, 0.96), "eps": 1e-10, "weight_decay": 0.01, "initial_lr": 0.004}
MUON = {"lr": 0.02, "momentum": 0.85, "ns_steps": 5, "beta2": 0.9, "weight_decay": 0.1, "initial_lr": 0.02}


def current(whole: Whole, rank: int, world: int) -> dict[str, Any]:
    """MuonAdamW, one dict, since 2026-01-29."""
    adamw, muon = adamw_groups(model_shapes()), muon_groups(model_shapes())
    count = sum(map(len, adamw))
    state = _adamw(whole, rank, world, STEP) | _stacked(whole, rank, world, count)
    options = [{"kind": "adamw", **ADAMW} for _ in adamw] + [{"kind": "muon", **MUON} for _ in muon]
    return {"state": state, "param_groups": _groups([*adamw, *muon], options)}


def stacked_list(whole: Whole, rank: int, world: int) -> list[Any]:
    """DistAdamW and the stacked DistMuon of 2026-01-15."""
    adamw, muon = adamw_groups(model_shapes()), muon_groups(model_shapes())
    options = [{"chunk_size": math.ceil(len(group) / world), **MUON} for group in muon]
    first = {"state": _adamw(whole, rank, world, STEP), "param_groups": _groups(adamw, [ADAMW for _ in adamw])}
    return [first, {"state": _stacked(whole, rank, world, 0), "param_groups": _groups(muon, options)}]


def owned_list(whole: Whole, rank: int, world: int) -> list[Any]:
    """DistAdamW and the DistMuon of 2025-10, with the second momentum that came in January.

    Steps are tensors, and so is something in the groups.
    """
    adamw, muon = adamw_groups(model_shapes()), muon_groups(model_shapes())
    state, first_id = {}, 0
    for group in muon:
        for place in range(rank, len(group), world):
            held = whole[group[place]]
            state[first_id + place] = {
                "momentum_buffer": held["momentum_buffer"].clone(),
                "second_momentum_buffer": held["second_momentum_buffer"].bfloat16(),
            }
        first_id += len(group)
    options = [{"zero_buffer": torch.zeros(model_shapes()[group[0]]), "nesterov": True, **MUON} for group in muon]
    first = _adamw(whole, rank, world, torch.tensor(STEP))
    return [
        {"state": first, "param_groups": _groups(adamw, [ADAMW for _ in adamw])},
        {"state": state, "param_groups": _groups(muon, options)},
    ]


FORMS = {"MuonAdamW": current, "AdamW + stacked Muon": stacked_list, "AdamW + Muon": owned_list}


def write_ranks(directory: Path, world: int, form: str = "MuonAdamW") -> Path:
    """A step saved by ``world`` ranks, as ``.pt``."""
    whole = whole_state()
    optimizers: dict[int | None, Any] = {rank: FORMS[form](whole, rank, world) for rank in range(world)}
    write_step(directory, STEP, model(), optimizers, META)
    return directory


def optim(rank: int, suffix: str = "pt") -> str:
    return f"optim_{STEP:06d}_rank{rank}.{suffix}"
