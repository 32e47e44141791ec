"""The parameters of an optimizer are named after the model's tensors, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastckpt.layout.parameter_names import parameter_names
from fastckpt.stored.inspection import inspect_file

Groups = Callable[[nn.Module], Any]


def plain(module: nn.Module) -> Any:
    return module.parameters()


def by_decay(module: nn.Module) -> Any:
    """Matrices and vectors apart, as most training scripts have them."""
    every = list(module.parameters())
    return [{"params": [each for each in every if (each.dim() > 1) is matrix]} for matrix in (True, False)]


def network() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    return nn.ModuleDict({"body": layers})


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.middle = nn.Linear(4, 4)


def stepped(module: nn.Module, groups: Groups, kind: Any = torch.optim.AdamW) -> torch.optim.Optimizer:
    optimizer = kind(groups(module), **({"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {}))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def named(state: Any, directory: Path) -> dict[Any, dict[Any, str]]:
    torch.save(state, directory / "state.pt")
    found = inspect_file(directory / "state.pt")
    return parameter_names(found.tree, found.entries)


def truth(module: nn.Module, optimizer: torch.optim.Optimizer, prefix: str) -> dict[int, str]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {number: f"{prefix}.{names[id(parameter)]}" for number, parameter in enumerate(every)}


@pytest.mark.parametrize("make", [network, Tied])
@pytest.mark.parametrize("groups", [plain, by_decay])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_names_are_those_of_the_module(
    tmp_path: Path, make: Callable[[], nn.Module], groups: Groups, kind: Any
) -> None:
    module = make()
    optimizer = stepped(module, groups, kind)
    state = {"optimizer": optimizer.state_dict(), "model": module.state_dict(), "epoch": 3}
    assert named(state, tmp_path) == {("optimizer",): truth(module, optimizer, "model")}
    assert named({"train": state}, tmp_path) == {("train", "optimizer"): truth(module, optimizer, "train.model")}


def test_an_average_beside_the_model_is_no_second_way(tmp_path: Path) -> None:
    module = network()
    optimizer = stepped(module, plain)
    state = {"model": module.state_dict(), "ema": network().state_dict(), "optimizer": optimizer.state_dict()}
    assert named(state, tmp_path) == {("optimizer",): truth(module, optimizer, "model")}


def test_frozen_layers_are_passed_over(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 2))
    optimizer = stepped(module, lambda module: module[1:].parameters())
    state = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    assert named(state, tmp_path) == {("optimizer",): truth(module, optimizer, "model")}


@pytest.mark.parametrize("which", ["frozen", "groups", "another model", "no model", "not a dict"])
def test_what_may_be_either_is_not_named(tmp_path: Path, which: str) -> None:
    module = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    groups: Groups = plain
    if which == "frozen":
        groups = lambda module: module[1:].parameters()  # noqa: E731
    if which == "groups":  # Odd and even layers, of one shape: nothing says which they are.
        groups = lambda module: [{"params": [*module[::2].parameters()]}, {"params": [*module[1].parameters()]}]  # noqa: E731
    optimizer = stepped(module, groups)
    model = nn.Linear(5, 5) if which == "another model" else module
    state: Any = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if which == "no model":
        del state["model"]
    if which == "not a dict":
        state = optimizer.state_dict()
    assert not any(named(state, tmp_path).values())
