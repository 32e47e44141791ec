"""Checkpoints of accelerate: each file converts and comes back, and training goes on from them to the same weights."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from describe import describe
from libraries import begun, copy_of, flip_in, killed_after, needs, same_bits, there_and_back

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError, UsageError

sys.path.append(str(Path(__file__).parents[1] / "sets"))
from set_builds import flip, halve

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

    def train(resume: Path | None = None, *, save: Path = middle, prepare: Any = None) -> Any:
        set_seed(5 if resume is None else 6)
        accelerator = Accelerator(cpu=True)
        if prepare is not None:
            prepare(accelerator)
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
                accelerator.save_state(str(save))
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


# --- models and optimizers in our file ----------------------------------------


@pytest.fixture
def own(trained: Trained, tmp_path: Path) -> Path:
    """The same step, saved with ours."""
    from fastckpt.integrations.accelerate import install

    trained.train(save=tmp_path / "run" / "step_3", prepare=install)
    return tmp_path / "run" / "step_3"


def test_it_saves_and_loads_with_fastckpt(trained: Trained, own: Path) -> None:
    from fastckpt.integrations.accelerate import install

    assert {path.name for path in own.iterdir()} == {"accelerate.fckpt", "scheduler.bin", "random_states_0.pkl"}
    state = fastckpt.load(own / "accelerate.fckpt")
    assert describe(state["optimizers"][0]) == describe(torch.load(trained.middle / "optimizer.bin"))
    assert main(["verify", str(own)]) == 0
    assert fastckpt.find_last_whole(own.parent) == str(own)
    assert same_bits(copy_of(trained.train(own, prepare=install)), trained.weights)
    assert same_bits(copy_of(trained.train(trained.middle, prepare=install)), trained.weights)


def test_it_ends_when_the_hooks_are_removed(trained: Trained, tmp_path: Path) -> None:
    from fastckpt.integrations.accelerate import install

    trained.train(save=tmp_path, prepare=lambda accelerator: [handle.remove() for handle in install(accelerator)])
    names = {"model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_every_file_of_a_step_counts(trained: Trained, own: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Gone, cut, emptied or flipped: it is not whole, not resumed from, and nothing of it is loaded."""
    from fastckpt.integrations.accelerate import install

    newer = own.parent / "step_20"
    shutil.copytree(own, newer)
    weight = fastckpt.load(own / "accelerate.fckpt")["models"][0]["0.weight"]
    for name in sorted(path.name for path in newer.iterdir()):
        for damage in (Path.unlink, halve, lambda path: path.write_bytes(b""), flip):
            damage(newer / name)
            caplog.clear()
            assert fastckpt.find_last_whole(own.parent) == str(own), (name, damage)
            assert str(newer) in caplog.text
            if (newer / "accelerate.fckpt").exists():
                assert str(newer / name) in caplog.text
                with pytest.raises(DamagedError, match=re.escape(name)):
                    trained.train(newer, prepare=install)
            shutil.copyfile(own / name, newer / name)
    assert fastckpt.find_last_whole(own.parent) == str(newer)
    flip_in(newer / "accelerate.fckpt", weight)
    assert fastckpt.find_last_whole(own.parent) == str(own)
    assert "models.0.0.weight" in caplog.text


def test_a_whole_step_is_not_saved_over_and_the_rest_of_one_is(trained: Trained, own: Path) -> None:
    from fastckpt.integrations.accelerate import install

    with pytest.raises(UsageError, match="a step is here already"):
        trained.train(save=own, prepare=install)
    (own / "scheduler.bin").unlink()
    trained.train(save=own, prepare=install)
    assert fastckpt.find_last_whole(own.parent) == str(own)


@pytest.mark.thorough
def test_a_kill_leaves_a_whole_step(tmp_path: Path) -> None:
    from accelerate import Accelerator

    from fastckpt.integrations.accelerate import install

    def loop() -> tuple[Any, Any]:
        accelerator = Accelerator(cpu=True)
        install(accelerator)
        net = torch.nn.Linear(400, 400)
        return accelerator, accelerator.prepare(net, torch.optim.SGD(net.parameters(), momentum=0.9))[0]

    def set_to(net: Any, value: int) -> None:
        with torch.no_grad():
            net.weight.fill_(float(value))

    step = 0

    def train() -> None:
        accelerator, net = loop()
        for later in range(step + 1, step + 10_000):
            set_to(net, later)
            accelerator.save_state(str(tmp_path / f"step_{later}"))

    for number in range(6):
        killed_after(number * 0.017, train, once=(tmp_path / f"step_{step + 2}").exists)
        newest = fastckpt.find_last_whole(tmp_path)
        assert newest is not None
        assert int(newest.rpartition("_")[2]) > step
        step = int(newest.rpartition("_")[2])
        accelerator, net = loop()
        accelerator.load_state(newest)
        assert torch.equal(net.weight, torch.full_like(net.weight, float(step)))


def test_two_ranks(tmp_path: Path) -> None:
    """Each has its random state, which is missed where it is not there; one file has what both hold."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from fastckpt.integrations.accelerate import install

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])

    def train(rank: int) -> None:
        os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        install(accelerator)
        net = torch.nn.Linear(4, 4)
        net, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters()))
        for step in (1, 2):
            accelerator.backward(net(torch.ones(2, 4)).sum())
            optimizer.step()
            accelerator.save_state(str(tmp_path / f"step_{step}"))
        saved = copy_of(net)
        with torch.no_grad():
            net.module.weight.zero_()
        accelerator.wait_for_everyone()
        accelerator.load_state(fastckpt.find_last_whole(tmp_path))
        assert same_bits(copy_of(net), saved)
        accelerator.wait_for_everyone()

    ends = [os.waitpid(child, 0)[1] for child in [begun(lambda rank=rank: train(rank)) for rank in (0, 1)]]
    assert ends == [0, 0]
    names = {"accelerate.fckpt", "random_states_0.pkl", "random_states_1.pkl"}
    assert {path.name for path in (tmp_path / "step_2").iterdir()} == names
    (tmp_path / "step_2" / "random_states_1.pkl").unlink()
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "step_1")
