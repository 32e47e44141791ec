"""A run to be ill, doctor to be asked, and a shell in which what it says is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from doctor_builds import write_step
from doctor_types import Doctor, Shell, Told

from fastckpt.cli.main import main


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsync is for is tested in tests/crash; here it would only take time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Ask, in the directory where the commands will be typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))

    def ask(*arguments: object) -> Told:
        code = main(["doctor", *map(str, arguments), "--json"])
        out = capsys.readouterr().out
        facts = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
        assert "error" not in facts, facts
        for one in facts["findings"]:
            assert one["severity"] in ("note", "warn", "bad")
            assert one["what"]
            assert one["next"] or one["severity"] == "note", one
        return Told(code, facts)

    return ask


@pytest.fixture
def text(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))

    def ask(*arguments: object) -> str:
        main(["doctor", *map(str, arguments)])
        return capsys.readouterr().out

    return ask


TORCHRUN = """#!/bin/sh
# Enough of torchrun to see what it is asked to start: the first rank of them.
[ "$1" = --standalone ] || exit 90
WORLD_SIZE="${2#--nproc_per_node=}"; export WORLD_SIZE
shift 2
if [ "$3" = -- ]; then module="$2"; shift 3; set -- -m "$module" "$@"; fi
exec python "$@"
"""

BASE_TRAIN = """
import argparse, json, os
from nanochat.checkpoint_manager import load_checkpoint
parser = argparse.ArgumentParser()
for name, kind in (("run", str), ("depth", int), ("model-tag", str), ("resume-from-step", int)):
    parser.add_argument("--" + name, type=kind)
args = parser.parse_args()
world = int(os.environ.get("WORLD_SIZE", 1))
directory = os.path.join(os.environ["NANOCHAT_BASE_DIR"], "base_checkpoints", args.model_tag or f"d{args.depth}")
for rank in range(world):
    model, optimizer, meta = load_checkpoint(directory, args.resume_from_step, "cpu", load_optimizer=True, rank=rank)
    meta["loop_state"]["min_val_bpb"], meta["dataloader_state_dict"]["rg_idx"]
    assert len(model) == 21 and len(optimizer["param_groups"]) == 10
print(f"resumed {args.run!r} at step {meta['step']} on {world}")
"""

MANAGER = """
import json, os
import torch
def load_checkpoint(checkpoint_dir, step, device, load_optimizer=False, rank=0):
    model = torch.load(os.path.join(checkpoint_dir, f"model_{step:06d}.pt"), map_location=device)
    optimizer = None
    if load_optimizer:
        optimizer = torch.load(os.path.join(checkpoint_dir, f"optim_{step:06d}_rank{rank:d}.pt"), map_location=device)
    with open(os.path.join(checkpoint_dir, f"meta_{step:06d}.json"), encoding="utf-8") as file:
        return model, optimizer, json.load(file)
def save_checkpoint(checkpoint_dir, step, model_data, optimizer_data, meta_data, rank=0):
    raise NotImplementedError
def find_last_step(checkpoint_dir):
    raise NotImplementedError
def find_largest_model(checkpoints_dir):
    raise NotImplementedError
def load_optimizer_state(source, device, rank, model_tag=None, step=None):
    raise NotImplementedError
"""


@pytest.fixture
def shell(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Type a command where doctor was asked: beside a nanochat that has only as much as a resume needs."""
    for name, source in (
        ("scripts/base_train.py", BASE_TRAIN),
        ("nanochat/checkpoint_manager.py", MANAGER),
        ("scripts/__init__.py", ""),
        ("nanochat/__init__.py", ""),
        ("scripts/tok_train.py", "import sys; print('trained', *sys.argv[1:])"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    programs = tmp_path_factory.mktemp("bin")
    for name, script in (
        ("python", forked.PROGRAM),
        ("fastckpt", f'#!/bin/sh\nexec {sys.executable} -m fastckpt "$@"\n'),
        ("torchrun", TORCHRUN),
    ):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": root}
    environment |= {"NANOCHAT_BASE_DIR": str(tmp_path), **forked.environment()}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        assert isinstance(command, str)
        return subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            pass_fds=[int(environment["FORKED"])],
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    """Make a run: ``base_checkpoints/d2`` with steps."""

    def make(*steps: int, world: int = 1, source: str = "base_checkpoints", tag: str = "d2") -> Path:
        directory = tmp_path / source / tag
        for step in steps:
            write_step(directory, step, world)
        return directory

    return make


@pytest.fixture(scope="session")
def real() -> Path:
    """Checkpoints that nanochat wrote, where they lie beside the repository."""
    path = Path(__file__).parents[2].parent / "shared" / "checkpoints"
    if not path.is_dir():
        pytest.skip("no real checkpoints beside the repository")
    return path
