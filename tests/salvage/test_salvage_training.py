"""A training loop of one's own: its checkpoint is damaged, and what salvage says to type makes it go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from salvage.support import equal
from torch import nn

import fastckpt
from fastckpt.cli.main import main

Make = Callable[[nn.Module], torch.optim.Optimizer]


def by_decay(module: nn.Module) -> torch.optim.Optimizer:
    every = list(module.parameters())
    matrices, vectors = ([each for each in every if (each.dim() > 1) is matrix] for matrix in (True, False))
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])


OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda module: torch.optim.AdamW(module.parameters()),
    "sgd": lambda module: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
    "groups": by_decay,
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.Linear(64, 128), nn.Linear(128, 16))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()


@pytest.fixture(params=list(OPTIMIZERS))
def states(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Two checkpoints in the current directory, and what is in them."""
    monkeypatch.chdir(tmp_path)
    model = network()
    optimizer = OPTIMIZERS[request.param](model)
    for step in (400, 500):
        train(model, optimizer, 2)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": step // 100}
        torch.save(state, f"ckpt_{step}.pt")
    return {step: torch.load(f"ckpt_{step}.pt") for step in (400, 500)} | {0: request.param}


def resumed(report: Any, kind: str) -> Any:
    """A new model and optimizer, after what the report says was typed and two steps were done."""
    model = network()
    optimizer = OPTIMIZERS[kind](model)
    names = {"torch": torch, "fastckpt": fastckpt, "model": model, "optimizer": optimizer}
    exec(report.next_step, names)
    found = copy.deepcopy({"model": model.state_dict(), "state": optimizer.state_dict()["state"]})
    train(model, optimizer, 2)
    return found


def flip(path: str, tensor: torch.Tensor) -> None:
    raw = bytearray(Path(path).read_bytes())
    raw[raw.index(tensor.contiguous().numpy().tobytes()) + 100] ^= 4
    Path(path).write_bytes(raw)


@pytest.mark.parametrize("suffix", [".pt", ".fckpt"])
def test_a_cut_file_goes_on_without_the_moments_that_are_gone(
    states: dict[int, Any], suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = Path("ckpt_500.pt").read_bytes()
    Path("ckpt_500.pt").write_bytes(raw[: len(raw) * 6 // 10])
    report = fastckpt.salvage("ckpt_500.pt", f"rescued{suffix}")
    (note,) = [note for note in report.notes if "optimizer state" in note]
    assert "(model." in note
    found = resumed(report, states[0])
    good = states[500]
    assert all(equal(found["model"][name], tensor) for name, tensor in good["model"].items())
    there = found["state"]
    assert 0 < len(there) < len(good["optimizer"]["state"])
    for number, values in there.items():
        assert all(equal(values[key], tensor) for key, tensor in good["optimizer"]["state"][number].items())
    assert main(["salvage", "ckpt_500.pt", "-o", f"again{suffix}"]) == 3
    assert capsys.readouterr().out.endswith('optimizer.load_state_dict(state["optimizer"])\n')
    # Where another step is, the dry run asks for it.
    assert "--backfill ckpt_400.pt" in fastckpt.salvage("ckpt_500.pt").next_step


def test_moments_come_along_with_weights(states: dict[int, Any]) -> None:
    flip("ckpt_500.pt", states[500]["model"]["2.weight"])
    report = fastckpt.salvage("ckpt_500.pt", "rescued.pt", backfill="ckpt_400.pt")
    assert report.complete
    (note,) = [note for note in report.notes if "optimizer state" in note]
    assert note.endswith(" (model.2.weight) comes from ckpt_400.pt, as the weights do")
    found = resumed(report, states[0])
    number = int(note.split("parameter ")[1].split()[0])
    for name, tensor in found["model"].items():
        assert equal(tensor, states[400 if name == "2.weight" else 500]["model"][name]), name
    for key, values in found["state"].items():
        step = 400 if key == number else 500
        assert all(equal(values[kind], tensor) for kind, tensor in states[step]["optimizer"]["state"][key].items())


def test_without_the_weights_the_next_step_is_to_find_them(states: dict[int, Any]) -> None:
    flip("ckpt_500.pt", states[500]["model"]["2.weight"])
    report = fastckpt.salvage("ckpt_500.pt", "rescued.pt")
    assert "--backfill ckpt_400.pt; or go back to ckpt_400.pt, which is whole" in report.next_step
    command = report.next_step.partition("fastckpt ")[2].partition(";")[0]
    assert main(command.split()) == 1
    assert equal(torch.load("rescued.pt")["model"]["2.weight"], states[400]["model"]["2.weight"])
    Path("ckpt_400.pt").unlink()
    assert "--backfill OTHER" in fastckpt.salvage("ckpt_500.pt", "rescued.pt").next_step


def test_an_optimizer_of_other_numbers_gives_no_moments(states: dict[int, Any]) -> None:
    """The other file's parameter of the same number is another one: the file's own moments stay."""
    flip("ckpt_500.pt", states[500]["model"]["2.weight"])
    other = states[400]
    groups = other["optimizer"]["param_groups"]
    last = max(number for group in groups for number in group["params"])
    other["optimizer"]["state"] = {last - n: values for n, values in other["optimizer"]["state"].items()}
    for group in groups:
        group["params"] = [last - number for number in group["params"]]
    torch.save(other, "other.pt")
    report = fastckpt.salvage("ckpt_500.pt", "rescued.pt", backfill="other.pt")
    assert list(report.backfilled) == ["model.2.weight"]


def test_lines_for_other_structures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saved = {
        "weights.pt": (model.state_dict(), 'model.load_state_dict(torch.load("x.pt", map_location="cpu"))'),
        "optim.pt": (optimizer.state_dict(), 'optimizer.load_state_dict(torch.load("x.pt", map_location="cpu"))'),
        "run.pt": (
            {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "iter_num": 7},
            'state = torch.load("x.pt", map_location="cpu")  # state["iter_num"] is 7\n'
            'model.load_state_dict(state["model_state_dict"])\n'
            'optimizer.load_state_dict(state["optimizer_state_dict"])',
        ),
        "other.pt": ({"numbers": [torch.ones(4000)]}, "fastckpt verify x.pt"),
    }
    for name, (state, lines) in saved.items():
        torch.save(state, name)
        raw = bytearray(Path(name).read_bytes())
        raw[-30] ^= 1  # in the zip's directory: no tensor is lost
        Path(name).write_bytes(raw)
        assert fastckpt.salvage(name, "x.pt").next_step == lines
    light = {"pytorch-lightning_version": "2.6", "state_dict": model.state_dict(), "optimizer_states": []}
    torch.save(light, "epoch=1-step=5.ckpt")
    assert fastckpt.salvage("epoch=1-step=5.ckpt", "x.ckpt").next_step == 'trainer.fit(model, ckpt_path="x.ckpt")'
