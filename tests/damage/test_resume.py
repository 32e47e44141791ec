"""Training goes on from what was salvaged: optimizers load, and take their next step."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from goods import Good, map_torch_zip

import fastckpt

Batch = tuple[torch.Tensor, torch.Tensor]
WAYS = [
    ("flip", ".pt"),
    ("hole", ".fckpt"),
    ("cut", ".pt"),
    *(
        pytest.param(*way, marks=pytest.mark.thorough)
        for way in (("flip", ".fckpt"), ("hole", ".pt"), ("cut", ".fckpt"))
    ),
]
"""How a tensor is damaged, and what salvage writes."""


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 64, generator=generator), torch.randn(16, 32, generator=generator)


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    loss = torch.zeros(())
    for seed in range(steps):
        inputs, wanted = batch(seed)
        loss = torch.nn.functional.mse_loss(net(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def break_tensor(path: Path, state: Any, name: str, how: str) -> None:
    """Damage the bytes of one tensor in a file of torch."""
    good = Good("pt/resume", "pt", path.read_bytes())
    map_torch_zip(good, state)
    start, end = good.storages[good.tensors[name].storage]
    data = bytearray(good.raw)
    if how == "flip":
        data[random.Random(name).randrange(start, end)] ^= 4
    elif how == "hole":
        data[start:end] = bytes(end - start)
    else:
        del data[start + 1 :]
    path.write_bytes(data)


@pytest.mark.parametrize(("how", "suffix"), WAYS)
def test_adamw(tmp_path: Path, how: str, suffix: str) -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
    train(net, optimizer, 3)
    saved = optimizer.state_dict()
    path = tmp_path / "optim_000003_rank0.pt"
    torch.save(saved, path)
    break_tensor(path, saved, "state.2.exp_avg_sq", how)

    out = tmp_path / f"salvaged{suffix}"
    report = fastckpt.salvage(path, out)
    assert report.exit_code == 3
    assert any(re.search(r"parameter( 2|s \{2)", note) for note in report.notes), report.notes
    back = torch.load(out, weights_only=True) if suffix == ".pt" else fastckpt.load(out)
    whole = [0, 1] if how == "cut" else [0, 1, 3]
    assert list(back["state"]) == whole, "half an entry is dropped as a whole"
    assert back["param_groups"] == saved["param_groups"]
    for key in whole:
        assert back["state"][key].keys() == saved["state"][key].keys()
        for name, value in back["state"][key].items():
            assert torch.equal(value, saved["state"][key][name])

    fresh = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
    fresh.load_state_dict(back)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loss = train(net, fresh, 2)
    assert loss == loss
    assert all(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
    assert sorted(fresh.state_dict()["state"]) == [0, 1, 2, 3]
    steps = [float(entry["step"]) for entry in fresh.state_dict()["state"].values()]
    assert sorted(set(steps)) == [2.0, 5.0]


class MuonAdamW(torch.optim.Optimizer):
    """As much of such an optimizer as tells whether its state fits.

    AdamW groups keep a step and two averages per parameter, muon groups two stacked buffers under the id of their
    first parameter. An entry that is not there starts anew; half an entry is a KeyError.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["kind"] == "adamw":
                for parameter in group["params"]:
                    self.adamw(group, parameter)
            else:
                self.muon(group)

    def adamw(self, group: dict[str, Any], parameter: torch.Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["exp_avg"].lerp_(parameter.grad, 1 - group["betas"][0])
        state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - group["betas"][1])
        parameter.sub_(group["lr"] * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8))

    def muon(self, group: dict[str, Any]) -> None:
        first = group["params"][0]
        state = self.state[first]
        stacked = torch.stack([parameter.grad for parameter in group["params"]])
        if not state:
            state["momentum_buffer"] = torch.zeros_like(stacked)
            state["second_momentum_buffer"] = torch.zeros_like(stacked[..., :1])
        state["momentum_buffer"].lerp_(stacked, 1 - group["momentum"])
        state["second_momentum_buffer"].lerp_(stacked.square().mean(-1, keepdim=True), 0.1)
        update = state["momentum_buffer"] / (state["second_momentum_buffer"].sqrt() + 1e-8)
        for parameter, change in zip(group["params"], update, strict=True):
            parameter.sub_(group["lr"] * change)


def muon_adamw(net: torch.nn.Module) -> MuonAdamW:
    head, *blocks = [parameter for parameter in net.parameters() if parameter.ndim == 2]
    biases = [parameter for parameter in net.parameters() if parameter.ndim == 1]
    adamw = {"kind": "adamw", "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0, "initial_lr": 0.1}
    return MuonAdamW(
        [
            {**adamw, "params": [head], "lr": 0.01},
            {**adamw, "params": biases, "lr": 0.02},
            {"kind": "muon", "params": blocks, "lr": 0.02, "momentum": 0.95, "ns_steps": 5, "beta2": 0.9},
        ]
    )


def blocks() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 32)] + [torch.nn.Linear(32, 32) for _ in range(4)]
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("how", ["flip", "hole"])
@pytest.mark.parametrize("lost", ["state.0.exp_avg", "state.2.exp_avg_sq", "state.6.second_momentum_buffer"])
def test_nanochat_optimizer(tmp_path: Path, lost: str, how: str) -> None:
    net = blocks()
    optimizer = muon_adamw(net)
    train(net, optimizer, 3)
    saved = optimizer.state_dict()
    assert sorted(saved["state"]) == [0, 1, 2, 3, 4, 5, 6], "int keys with gaps: the group of ids 6 to 9 has one entry"
    path = tmp_path / "optim_000003_rank0.pt"
    torch.save(saved, path)
    break_tensor(path, saved, lost, how)
    parameter = int(lost.split(".")[1])

    out = tmp_path / "salvaged.pt"
    report = fastckpt.salvage(path, out)
    assert report.exit_code == 3
    assert any(f"parameter {parameter} " in note for note in report.notes), report.notes
    back = torch.load(out, weights_only=True)
    assert back["param_groups"] == saved["param_groups"]
    assert list(back["state"]) == [key for key in saved["state"] if key != parameter]
    for key, entry in back["state"].items():
        assert entry.keys() == saved["state"][key].keys()
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(saved["state"][key][name]))

    fresh = muon_adamw(net)
    fresh.load_state_dict(back)
    assert train(net, fresh, 2) == pytest.approx(1, abs=3)
    assert sorted(fresh.state_dict()["state"]) == [0, 1, 2, 3, 4, 5, 6]


def test_state_is_taken_from_the_step_before_as_a_whole(tmp_path: Path) -> None:
    net = blocks()
    optimizer = muon_adamw(net)
    train(net, optimizer, 2)
    older = tmp_path / "optim_000002_rank0.pt"
    torch.save(optimizer.state_dict(), older)
    before = torch.load(older, weights_only=True)
    train(net, optimizer, 1)
    saved = optimizer.state_dict()
    path = tmp_path / "optim_000003_rank0.pt"
    torch.save(saved, path)
    break_tensor(path, saved, "state.1.exp_avg", "flip")

    out = tmp_path / "salvaged.pt"
    report = fastckpt.salvage(path, out, backfill=older)
    assert set(report.backfilled) == {"state.1.exp_avg", "state.1.exp_avg_sq"}, "never one average of each step"
    assert report.complete
    back = torch.load(out, weights_only=True)
    assert back["state"][1]["step"] == before["state"][1]["step"]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(back["state"][1][name], before["state"][1][name])
        assert torch.equal(back["state"][0][name], saved["state"][0][name])
    fresh = muon_adamw(net)
    fresh.load_state_dict(back)
    train(net, fresh, 1)
