"""The command as a user runs it, and one file of every kind to run it on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt.cli.demo import flip_bit
from fastckpt.cli.main import main
from fastckpt.layout import frame
from fastckpt.stored.inspection import inspect_file

COMMAND = [sys.executable, "-m", "fastckpt"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on stdout, read as strictly as other languages do."""

        def refuse(text: str) -> None:
            raise AssertionError(f"{text} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


def run_command(*arguments: object, **options: Any) -> Ended:
    """Run ``fastckpt`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})}
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment, **options
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def cli() -> Callable[..., Ended]:
    return run_command


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command inside this process, which is faster."""

    def run(*arguments: object) -> Ended:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def sample_state() -> dict[str, Any]:
    """A single-file checkpoint with all that is shown: model, optimizer, step, config, a tied weight."""
    torch.manual_seed(0)
    tied = torch.randn(64, 32)
    model = {f"layers.{i}.attn.weight": torch.randn(32, 32) for i in range(4)}
    model |= {"wte.weight": tied, "lm_head.weight": tied, "bias": torch.randn(300_000).bfloat16()}
    group = {"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1], "foreach": None}
    state = {0: {"step": torch.tensor(7.0), "exp_avg": torch.randn(64, 32)}}
    return {
        "model": model,
        "optimizer": {"state": state, "param_groups": [group]},
        "step": 7,
        "config": {"n_layer": 4, "best": float("inf"), "name": "tiny"},
    }


class Samples:
    """Files to run commands on; nobody may write to them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        state = sample_state()
        self.pt = directory / "model.pt"
        self.legacy = directory / "legacy.pt"
        self.fckpt = directory / "model.fckpt"
        self.safetensors = directory / "model.safetensors"
        torch.save(state, self.pt)
        torch.save(state, self.legacy, _use_new_zipfile_serialization=False)
        fastckpt.save(state, self.fckpt, metadata={"loss": float("nan"), "run": "a"})
        fastckpt.save({name: t.clone() for name, t in state["model"].items()}, directory / "flat.fckpt")
        fastckpt.convert(directory / "flat.fckpt", self.safetensors)
        self.damaged_pt = self._flipped(self.pt)
        self.damaged = self._flipped(self.fckpt)
        self.cut = directory / "cut.fckpt"
        self.cut.write_bytes(self.fckpt.read_bytes()[: -(200 << 10)])

    def _flipped(self, source: Path) -> Path:
        found = inspect_file(source)
        entry = next(entry for entry in found.entries if entry.name == "model.bias")
        offset = found.storages[entry.storage].offset
        assert offset is not None
        copy = self.directory / f"damaged{source.suffix}"
        shutil.copyfile(source, copy)
        flip_bit(copy, offset + 1000)
        return copy

    def of_version(self, path: Path, version: int) -> Path:
        """A file whose format version is another one, with right digests."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frame, "FORMAT_VERSION", version)
            fastckpt.save({"w": torch.ones(3)}, path)
        return path


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def real() -> Path:
    """Checkpoints that nanochat wrote, where they lie beside the repository."""
    path = Path(__file__).parents[2].parent / "shared" / "checkpoints"
    if not path.is_dir():
        pytest.skip("no real checkpoints beside the repository")
    return path
