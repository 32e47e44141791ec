"""rng_state and set_rng_state: all generators of a process go on where they were, over a file too."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastckpt
from fastckpt.errors import UsageError


def draw() -> list[object]:
    return [random.random(), random.gauss(), np.random.rand(), np.random.normal(), torch.rand(3).tolist()]


@pytest.mark.parametrize("suffix", [None, "fckpt", "pt"])
def test_draws_are_repeated(tmp_path: Path, suffix: str | None) -> None:
    draw()
    state = fastckpt.rng_state()
    path = tmp_path / f"rng.{suffix}"
    (torch.save if suffix == "pt" else fastckpt.save)({"rng": state}, path)
    drawn = draw()
    if suffix is not None:
        state = fastckpt.load(path)["rng"]
    fastckpt.set_rng_state(state)
    assert draw() == drawn


def test_only_what_is_there_is_set() -> None:
    state = fastckpt.rng_state()
    drawn = draw()
    fastckpt.set_rng_state({"torch": state["torch"]})
    again = draw()
    assert again[-1] == drawn[-1]
    assert again[0] != drawn[0]
    with pytest.raises(TypeError):
        fastckpt.set_rng_state({"torch": torch.ones(3)})


def test_without_numpy(tmp_path: Path) -> None:
    fastckpt.save(fastckpt.rng_state(), tmp_path / "rng.fckpt")
    program = """
import sys
sys.modules["numpy"] = None
import warnings; warnings.simplefilter("ignore")
import fastckpt, torch
assert "numpy" not in fastckpt.rng_state()
fastckpt.set_rng_state(fastckpt.load(sys.argv[1]))
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "rng.fckpt")], check=True, timeout=60)


def test_map_location_is_the_device(tmp_path: Path) -> None:
    fastckpt.save({"w": torch.ones(2)}, tmp_path / "s.fckpt")
    if not torch.cuda.is_available():
        for where in ("cuda", torch.device("cuda", 1)):
            with pytest.raises(UsageError, match="torch sees no CUDA device"):
                fastckpt.load(tmp_path / "s.fckpt", map_location=where)
    assert fastckpt.load(tmp_path / "s.fckpt", map_location="cpu", device="cpu")["w"].device.type == "cpu"
    for wrong in ({"cuda:0": "cpu"}, lambda storage, place: storage):
        with pytest.raises(UsageError, match="one device"):
            fastckpt.load(tmp_path / "s.fckpt", map_location=wrong)
    with pytest.raises(UsageError, match="two devices"):
        fastckpt.load(tmp_path / "s.fckpt", device="cuda", map_location="cpu")
    with pytest.raises(UsageError, match="no device is called so"):
        fastckpt.load(tmp_path / "s.fckpt", map_location="gpu")


def test_modules_of_the_package_are_there_at_once() -> None:
    program = """
import sys, fastckpt
assert "torch" not in sys.modules
assert issubclass(fastckpt.errors.DamagedError, fastckpt.errors.FastckptError)
assert callable(fastckpt.nanochat.install)
assert {"errors", "nanochat", "save"} <= set(dir(fastckpt))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
