"""The state of another kind of optimizer is refused before anything is written, and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import optim

import fastckpt
from fastckpt.errors import MismatchError

Make = Callable[..., torch.optim.Optimizer]
KINDS: dict[str, Make] = {
    "SGD": partial(optim.SGD, lr=0.1, momentum=0.9),
    "AdamW": partial(optim.AdamW, lr=0.1),
    "RMSprop": partial(optim.RMSprop, lr=0.1),
    "Adagrad": partial(optim.Adagrad, lr=0.1),
    "Adamax": partial(optim.Adamax, lr=0.1),
}
SAME: dict[str, Make] = {
    **KINDS,
    "plain SGD": partial(optim.SGD, lr=0.2),
    "Adam": partial(optim.Adam, lr=0.2),
    "AMSGrad": partial(optim.AdamW, lr=0.2, amsgrad=True),
}


def trained(make: Make, *, steps: int) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = make(model.parameters())
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else bool(a == b)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("saved", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_each_takes_its_own_state_alone(saved: str, here: str, steps: int, tmp_path: Path) -> None:
    fastckpt.save({"optimizer": trained(KINDS[saved], steps=2)[1]}, tmp_path / "a.fckpt")
    model, optimizer = trained(KINDS[here], steps=steps)
    before = copy.deepcopy(optimizer.state_dict())
    if saved == here:
        assert fastckpt.load_into({"optimizer": optimizer}, tmp_path / "a.fckpt") == ([], [])
        step(model, optimizer)
        return
    with pytest.raises(MismatchError, match="nothing was written") as caught:
        fastckpt.load_into({"optimizer": optimizer}, tmp_path / "a.fckpt")
    assert "optimizer: the state of another kind of optimizer" in caught.value.message
    assert same(optimizer.state_dict(), before)
    left = fastckpt.load_into({"optimizer": optimizer}, tmp_path / "a.fckpt", strict=False)
    assert left.unexpected
    assert same(optimizer.state_dict(), before)
    step(model, optimizer)


def test_names(tmp_path: Path) -> None:
    fastckpt.save({"optimizer": trained(KINDS["AdamW"], steps=1)[1], "step": 7}, tmp_path / "a.fckpt")
    _, optimizer = trained(KINDS["SGD"], steps=1)
    state = {"optimizer": optimizer, "step": 0}
    missing, unexpected = fastckpt.load_into(state, tmp_path / "a.fckpt", strict=False)
    assert missing == [
        "optimizer.param_groups.0.dampening",
        "optimizer.param_groups.0.momentum",
        "optimizer.param_groups.0.nesterov",
        "optimizer.state.0.momentum_buffer",
    ]
    assert unexpected[:3] == [f"optimizer.param_groups.0.{name}" for name in ("amsgrad", "betas", "eps")]
    assert unexpected[3:] == [f"optimizer.state.0.{name}" for name in ("exp_avg", "exp_avg_sq", "step")]
    assert state["step"] == 7


@pytest.mark.parametrize(
    ("saved", "here"), [("plain SGD", "SGD"), ("SGD", "plain SGD"), ("Adam", "AdamW"), ("AMSGrad", "AdamW")]
)
@pytest.mark.parametrize("steps", [0, 1])
def test_other_options_of_the_same_kind_are_taken(saved: str, here: str, steps: int, tmp_path: Path) -> None:
    fastckpt.save({"optimizer": trained(SAME[saved], steps=2)[1]}, tmp_path / "a.fckpt")
    _, optimizer = trained(SAME[here], steps=steps)
    assert fastckpt.load_into({"optimizer": optimizer}, tmp_path / "a.fckpt") == ([], [])
    assert optimizer.param_groups[0]["lr"] == SAME[saved].keywords["lr"]  # type: ignore[attr-defined]


def test_what_a_scheduler_and_the_user_add_is_no_other_kind(tmp_path: Path) -> None:
    _, optimizer = trained(KINDS["AdamW"], steps=1)
    optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=9)
    optimizer.param_groups[0]["kind"] = "decay"
    fastckpt.save({"optimizer": optimizer}, tmp_path / "a.fckpt")
    _, other = trained(KINDS["AdamW"], steps=0)
    assert fastckpt.load_into({"optimizer": other}, tmp_path / "a.fckpt") == ([], [])
    assert other.param_groups[0]["kind"] == "decay"
    # And one that an older torch has saved, without the options that came later.
    state = other.state_dict()
    for group in state["param_groups"]:
        for later in ("foreach", "fused", "maximize", "capturable", "differentiable", "decoupled_weight_decay"):
            group.pop(later, None)
    fastckpt.save({"optimizer": state}, tmp_path / "old.fckpt")
    assert fastckpt.load_into({"optimizer": trained(KINDS["AdamW"], steps=1)[1]}, tmp_path / "old.fckpt") == ([], [])


class Lion(torch.optim.Optimizer):
    """A user's own, whose state comes bit by bit."""

    def __init__(self, params: Any, lr: float = 0.1, warmup: int = 1) -> None:
        super().__init__(params, {"lr": lr, "warmup": warmup})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum"] = parameter.grad.clone()


def test_an_optimizer_of_the_user(tmp_path: Path) -> None:
    fastckpt.save({"optimizer": trained(KINDS["AdamW"], steps=1)[1]}, tmp_path / "adam.fckpt")
    _, lion = trained(Lion, steps=1)
    with pytest.raises(MismatchError, match="another kind"):
        fastckpt.load_into({"optimizer": lion}, tmp_path / "adam.fckpt")
    state = lion.state_dict()
    del state["param_groups"][0]["warmup"]  # Of an older version of it: load_state_dict knows what to do.
    fastckpt.save({"optimizer": state}, tmp_path / "old.fckpt")
    assert fastckpt.load_into({"optimizer": lion}, tmp_path / "old.fckpt") == ([], [])
