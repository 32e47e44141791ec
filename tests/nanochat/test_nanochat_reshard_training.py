"""Training goes on from resharded files as it would have from its own: losses and weights bit for bit.

The ranks are played one after the other in one process, with equal data, so
that the mean of their gradients is each of them. The update is MuonAdamW's in
outline, without what takes its time: what matters is that each rank touches just
its own rows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_builds import write_step
from nanochat_ranks import ADAMW, META, MUON, STEP, adamw_groups, current, model, muon_groups, optim, whole_state
from states import assert_same

from fastckpt.nanochat import load_checkpoint, reshard, save_checkpoint

Weights = dict[str, torch.Tensor]


class Ranks:
    """The optimizer of all ranks, sharded as nanochat shards it."""

    def __init__(self, weights: Weights, states: list[Any]) -> None:
        self.weights = weights
        self.states = states
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        self.adamw = [name for group in adamw_groups(shapes) for name in group]
        self.muon = muon_groups(shapes)

    @torch.no_grad()
    def step(self) -> None:
        for rank, saved in enumerate(self.states):
            state = saved["state"]
            for number, name in enumerate(self.adamw):
                self.step_adamw(name, rank, state[number])
            number = len(self.adamw)
            for group in self.muon:
                self.step_muon(group, rank, state[number])
                number += len(group)
        for weight in self.weights.values():
            weight.grad = None

    def step_adamw(self, name: str, rank: int, state: dict[str, Any]) -> None:
        weight = self.weights[name]
        rows, world = weight.shape[0], len(self.states)
        large = weight.numel() >= 1024
        if not large and rank > 0:
            own = weight.clone()  # Every rank updates all of it alike; the weights are those of rank 0.
        else:
            own = weight[rank * rows // world : (rank + 1) * rows // world] if large else weight
        assert weight.grad is not None
        grad = weight.grad[rank * rows // world : (rank + 1) * rows // world] if large else weight.grad
        state["step"] += 1
        first, second = ADAMW["betas"]  # type: ignore[misc]
        state["exp_avg"].mul_(first).add_(grad, alpha=1 - first)
        state["exp_avg_sq"].mul_(second).add_(grad * grad, alpha=1 - second)
        scale = ADAMW["lr"] / (1 - first ** state["step"])
        own.sub_(scale * state["exp_avg"] / (state["exp_avg_sq"].abs().sqrt() + ADAMW["eps"]))

    def step_muon(self, group: list[str], rank: int, state: dict[str, Any]) -> None:
        share = math.ceil(len(group) / len(self.states))
        for row, name in enumerate(group[rank * share : (rank + 1) * share]):
            weight = self.weights[name]
            momentum, second = state["momentum_buffer"][row], state["second_momentum_buffer"][row]
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 1 - MUON["momentum"])
            update = momentum / (momentum.norm() + 1e-7)
            wide = weight.shape[0] < weight.shape[1]
            second.lerp_(update.square().mean(-2 if wide else -1, keepdim=True), 1 - MUON["beta2"])
            weight.sub_(MUON["lr"] * update / (second.abs().sqrt() + 1e-3))


def train(weights: Weights, states: list[Any], steps: int) -> tuple[list[float], Weights]:
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = Ranks(weights, states)
    losses = []
    for step in range(steps):
        loss = torch.stack(
            [(weight.float() * (1 + n + step) / 30).square().mean() for n, weight in enumerate(weights.values())]
        )
        loss.sum().backward()  # type: ignore[no-untyped-call]
        losses.append(loss.sum().item())
        optimizer.step()
    return losses, {name: weight.detach() for name, weight in weights.items()}


def resume(directory: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Weights, list[Any]]:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    weights, _, _ = load_checkpoint(directory, STEP, "cpu")
    return weights, [load_checkpoint(directory, STEP, "cpu", True, rank)[1] for rank in range(world)]


@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_same_training_on_4_2_and_1_ranks(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {name: {k: v.abs() * 0.01 for k, v in held.items()} for name, held in whole_state().items()}
    start = [current(whole, rank, 4) for rank in range(4)]
    monkeypatch.setenv("WORLD_SIZE", "4")
    if suffix == "pt":
        write_step(tmp_path / "4", STEP, model(), dict(enumerate(start)), META)
    else:
        for rank in (3, 2, 1, 0):
            save_checkpoint(tmp_path / "4", STEP, model(), start[rank], META, rank=rank)
    reshard(tmp_path / "4", tmp_path / "2", step=STEP, world_size=2)
    reshard(tmp_path / "2", tmp_path / "1", step=STEP, world_size=1)
    assert (tmp_path / "1" / optim(0, suffix)).exists()
    reference = train(model(), start, 3)
    assert len(set(reference[0])) == 3
    for world in (4, 2, 1):
        weights, states = resume(tmp_path / str(world), world, monkeypatch)
        losses, after = train(weights, states, 3)
        assert losses == reference[0]
        assert_same(dict(after), reference[1])


def test_the_comparison_sees_a_wrong_rank(tmp_path: Path) -> None:
    """With the states of two ranks exchanged, training goes on, and elsewhere: what all this is for."""
    whole = {name: {k: v.abs() * 0.01 for k, v in held.items()} for name, held in whole_state().items()}
    right = train(model(), [current(whole, rank, 2) for rank in (0, 1)], 3)
    swapped = train(model(), [current(whole, rank, 2) for rank in (1, 0)], 3)
    assert right[0][0] == swapped[0][0]
    assert right[0][2] != swapped[0][2]
