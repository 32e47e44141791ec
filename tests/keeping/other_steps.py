"""Small steps of every kind but nanochat's, each in the shape that its program gives it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import fastckpt

sys.path.append(str(Path(__file__).parents[1] / "sets"))
from set_builds import halve, write_accelerate_step, write_deepspeed_step, write_trainer_step

Write = Callable[[Path, int], Path]
STATE = {"w": torch.arange(5000.0)}


def write_file(name: str) -> Write:
    def write(directory: Path, step: int) -> Path:
        path = directory / name.format(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        fastckpt.save(STATE, path) if path.suffix in (".fckpt", ".ckpt") else torch.save(STATE, path)
        return path if path.parent == directory else path.parent

    return write


def write_set(directory: Path, step: int) -> Path:
    fastckpt.dcp.save(STATE, directory / f"step-{step}", no_dist=True)
    return directory / f"step-{step}"


KINDS: dict[str, Write] = {
    "trainer": write_trainer_step,
    "accelerate": write_accelerate_step,
    "deepspeed": write_deepspeed_step,
    "own set": write_set,
    "plain": write_file("ckpt_{}.pt"),
    "lightning": write_file("epoch=0-step={}.ckpt"),
    "own": write_file("step_{:08d}.fckpt"),
    "directory": write_file("step_{}/model.pt"),
}


def run_of(directory: Path, write: Write, steps: tuple[int, ...]) -> dict[int, Path]:
    """Steps, each older than the one behind it."""
    directory.mkdir(exist_ok=True)
    paths = {step: write(directory, step) for step in steps}
    for step, path in paths.items():
        for file in [path, *path.rglob("*")]:
            os.utime(file, (1_700_000_000 + step,) * 2)
    return paths


def left(paths: dict[int, Path]) -> list[int]:
    return [step for step, path in paths.items() if path.exists()]


def damage(path: Path) -> None:
    """A file of a step is cut, wherever that is seen: not the one file in which nothing tells it."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    halve(next(file for file in files if file.suffix not in (".json", ".safetensors")))
