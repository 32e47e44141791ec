"""Checkpoints of accelerate: each file converts and comes back, and training goes on from them to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from describe import describe
from libraries import copy_of, needs, same_bits, there_and_back

import fastckpt

pytestmark = needs("accelerate")
STEPS, STOP = 6, 3
SUFFIXES = (".bin", ".pkl", ".safetensors")


class Trained(NamedTuple):
    """A training of six steps, and the directory of the checkpoint in the middle of it."""

    train: Any
    middle: Path
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    middle = tmp_path_factory.mktemp("accelerate") / "middle"

    def train(resume: Path | None = None) -> Any:
        set_seed(5 if resume is None else 6)
        accelerator = Accelerator(cpu=True)
        net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.5)
        model, optimizer, schedule = accelerator.prepare(net, optimizer, schedule)
        inputs = torch.randn(STEPS, 16, 8, generator=torch.Generator().manual_seed(0))
        if resume is not None:
            accelerator.load_state(str(resume))
        for step in range(0 if resume is None else STOP, STEPS):
            accelerator.backward(model(inputs[step]).square().mean())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if resume is None and step == STOP - 1:
                accelerator.save_state(str(middle))
        return accelerator.unwrap_model(model)

    return Trained(train, middle, copy_of(train()))


def test_each_file_converts_and_comes_back(trained: Trained, tmp_path: Path) -> None:
    back = there_and_back(trained.middle, tmp_path, SUFFIXES)
    assert same_bits(copy_of(trained.train(back)), trained.weights)


def test_it_loads_as_torch_loads_it_and_training_goes_on(trained: Trained, tmp_path: Path) -> None:
    again = there_and_back(trained.middle, tmp_path, SUFFIXES)
    names = {path.name for path in again.iterdir()} - {"model.safetensors"}
    assert names == {"optimizer.bin", "scheduler.bin", "random_states_0.pkl"}
    for name in names:
        state = fastckpt.load(tmp_path / f"{name}.fckpt")
        assert describe(state) == describe(torch.load(trained.middle / name, weights_only=False))
        fastckpt.save(state, tmp_path / "saved.fckpt")
        torch.save(fastckpt.load(tmp_path / "saved.fckpt"), again / name)
    assert same_bits(copy_of(trained.train(again)), trained.weights)
