"""A small model and an optimizer whose state is built as nanochat's is, to train and resume in tests.

One AdamW group per parameter kind and one Muon group; python int steps, the
moments of parameters with 1024 elements or more split among the ranks by rows,
Muon's momentum stacked and under the first id of its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

V, D, LAYERS = 128, 16, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_q = nn.Linear(D, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.c_q(x))


class Model(nn.Module):
    """Names and order as nanochat has them: scalars first, then embedding, layers, head."""

    def __init__(self) -> None:
        super().__init__()
        self.resid_lambdas = nn.Parameter(torch.ones(LAYERS))
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(V, D), "h": nn.ModuleList(Block() for _ in range(LAYERS))}
        )
        self.lm_head = nn.Linear(D, V, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](tokens[:, :-1]).float()
        for scale, block in zip(self.resid_lambdas, self.transformer["h"], strict=True):
            x = scale * x + block(x)
        return nn.functional.cross_entropy(self.lm_head(x).flatten(0, 1), tokens[:, 1:].flatten())


def new_model() -> Model:
    torch.manual_seed(0)
    model = Model()
    model.transformer["wte"].to(torch.bfloat16)
    return model


def meta_model() -> Model:
    """A model whose parameters are yet to be assigned, as nanochat makes it before it loads."""
    with torch.device("meta"):
        model = Model()
    return model


class MuonAdamW(torch.optim.Optimizer):
    def __init__(self, model: Model) -> None:
        h = [block.c_q.weight for block in model.transformer["h"]]
        adamw = {"kind": "adamw", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0}
        muon = {"kind": "muon", "lr": 0.02, "momentum": 0.9, "ns_steps": 5, "beta2": 0.9, "weight_decay": 0.1}
        groups: list[dict[str, Any]] = [
            {**adamw, "params": [model.lm_head.weight]},
            {**adamw, "params": [model.transformer["wte"].weight]},
            {**adamw, "params": [model.resid_lambdas], "betas": (0.8, 0.99)},
            {**muon, "params": h},
        ]
        for group in groups:
            group["initial_lr"] = group["lr"]
        super().__init__(groups, defaults={})
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if group["kind"] == "adamw":
                for param in group["params"]:
                    self._adamw(param, group)
            else:
                self._muon(group)

    def _mean(self, grad: torch.Tensor) -> torch.Tensor:
        if self.world == 1:
            return grad
        total = grad.float()
        dist.all_reduce(total)
        return (total / self.world).to(grad.dtype)

    def _adamw(self, param: torch.Tensor, group: dict[str, Any]) -> None:
        grad = self._mean(param.grad)
        split = self.world > 1 and param.numel() >= 1024
        own, grad = (t.chunk(self.world)[self.rank] if split else t for t in (param.data, grad))
        state = self.state[param]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(own), "exp_avg_sq": torch.zeros_like(own)}
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
        scale = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        own.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt() + group["eps"], value=-scale)
        if split:
            self._gather(list(param.data.chunk(self.world)), own)

    def _muon(self, group: dict[str, Any]) -> None:
        params = group["params"]
        rows = -(-len(params) // self.world)
        first = self.rank * rows
        grads = [self._mean(param.grad) for param in params]
        state = self.state[params[0]]
        if not state:
            state["momentum_buffer"] = torch.zeros(rows, *params[0].shape)
            state["second_momentum_buffer"] = torch.zeros(rows, params[0].shape[0], 1)
        updated = torch.zeros(rows, *params[0].shape)
        for row, param in enumerate(params[first : first + rows]):
            momentum = state["momentum_buffer"][row].lerp_(grads[first + row], 1 - group["momentum"])
            second = state["second_momentum_buffer"][row]
            second.lerp_(momentum.square().mean(1, keepdim=True), 1 - group["beta2"])
            updated[row] = param.data - group["lr"] * momentum / (second.sqrt() + 1e-6)
        stacked = [torch.empty_like(updated) for _ in range(self.world)]
        self._gather(stacked, updated)
        for param, value in zip(params, torch.cat(stacked), strict=False):
            param.data.copy_(value)

    def _gather(self, parts: list[torch.Tensor], own: torch.Tensor) -> None:
        if self.world == 1:
            parts[0].copy_(own)
        else:
            gathered = [torch.empty_like(part) for part in parts]
            dist.all_gather(gathered, own.contiguous())
            for part, value in zip(parts, gathered, strict=True):
                part.copy_(value)


def batch(step: int, rank: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(0, V, (4, 9), generator=generator)


def train(model: Model, optimizer: MuonAdamW, first: int, steps: int) -> Iterator[float]:
    """Train in place from step ``first`` on; yields each loss."""
    for step in range(first, first + steps):
        model.zero_grad(set_to_none=True)
        loss = model(batch(step, optimizer.rank))
        loss.backward()
        optimizer.step()
        yield loss.item()


def resume(model_data: Any, optimizer_data: Any) -> tuple[Model, MuonAdamW]:
    """What nanochat does on resume: the loaded tensors become the parameters."""
    model = meta_model()
    model.load_state_dict(model_data, strict=True, assign=True)
    for name, param in model.named_parameters():
        assert param.data_ptr() == model_data[name].data_ptr()
    optimizer = MuonAdamW(model)
    optimizer.load_state_dict(optimizer_data)
    return model, optimizer
