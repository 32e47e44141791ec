"""Every command's help has examples, and these run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_builds import write_step
from sharded_builds import grid, write_own, write_pieces

import fastckpt
from fastckpt.cli.parsers import COMMANDS, module_of

sys.path.append(str(Path(__file__).parents[1] / "nanochat"))
import nanochat_standin
from nanochat_ranks import write_ranks

sys.path.append(str(Path(__file__).parents[1] / "sets"))
from set_builds import write_trainer_step

ENDS_WITH = {
    "fastckpt verify broken.pt --json": 2,
    "fastckpt salvage broken.pt": 3,
    "fastckpt salvage broken.pt -o rescued.pt --backfill model_000400.pt": 1,
    "fastckpt diff model_000400.pt model_000500.pt --top 5": 1,
    "fastckpt repair --dry-run weights.safetensors": 1,
    "fastckpt diff base_checkpoints/d4 --steps 10 20 --html d4.html": 1,
}
"""Those that find something; all others end with 0."""


@pytest.fixture
def _a_users_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files that the examples name, in a checkout of nanochat."""
    checkout, base = nanochat_standin.build(tmp_path / "checkout"), tmp_path / "base"
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(checkout))
    modules, argv, path = set(sys.modules), sys.argv, list(sys.path)
    model = {"layer.bias": torch.randn(90), "layer.weight": torch.randn(90, 90)}
    for step in (400, 500):
        torch.save({name: tensor + step for name, tensor in model.items()}, f"model_000{step}.pt")
    fastckpt.convert("model_000500.pt")
    whole = Path("model_000500.pt").read_bytes()
    Path("broken.pt").write_bytes(whole[: len(whole) * 2 // 3])
    torch.save({"state_dict": model, "epoch": 3}, "epoch.ckpt")
    fastckpt.save({"model": model, "step": 500}, "state.fckpt")
    fastckpt.convert("model_000500.pt", "model.safetensors")
    fastckpt.convert("model_000500.pt", "weights.safetensors")
    fastckpt.seal("weights.safetensors", parity="3%")
    weights = Path("weights.safetensors").read_bytes()
    Path("weights.safetensors").write_bytes(weights[:20_000] + b"damage" + weights[20_006:])
    Path("my-model").mkdir()
    fastckpt.convert("model_000500.pt", "my-model/model.safetensors")
    Path("config.json").write_text("{}")
    steps = base / "base_checkpoints" / "d4"
    Path("base_checkpoints").symlink_to(steps.parent)
    for step in (10, 20):
        write_step(steps, step)
    write_ranks(Path("two_ranks"), 2)
    write_own(Path("run-a/step-500"), model, grid(2))
    write_pieces(Path("run-b/step-500"), model, grid(1, 3))
    for step, loss in ((10, 0.5), (20, 0.7)):
        log = {"global_step": step, "log_history": [{"step": step, "eval_loss": loss}]}
        (write_trainer_step(Path("trainer"), step) / "trainer_state.json").write_text(json.dumps(log))
    yield
    fastckpt.nanochat.uninstall()
    sys.argv, sys.path[:] = argv, path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("nanochat", "scripts"):
            del sys.modules[name]


def examples(command: str) -> list[str]:
    """The commands, without the words beside them."""
    return [re.sub(r"\s+# .*", "", line) for line in module_of(command).EXAMPLES]


@pytest.mark.usefixtures("_a_users_directory")
# Those of sync need a bucket: tests/remote/test_sync.py has one.
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("completion", "man", "sync")])
def test_examples_run(command: str, here: Callable[..., Any], tmp_path: Path) -> None:
    for line in examples(command):
        program, *arguments = shlex.split(line)
        assert program == "fastckpt"
        assert arguments[0] == command
        arguments = [word.replace("/backup", str(tmp_path / "backup")) for word in arguments]
        ended = here(*arguments)
        assert ended.code == ENDS_WITH.get(line, 0), f"{line}\n{ended.out}{ended.err}"


@pytest.mark.parametrize(("columns", "width"), [("60", 58), ("80", 78), ("300", 98)])
def test_help_is_as_wide_as_the_terminal(
    columns: str, width: int, here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what is to be typed, which is never broken: that is set in."""
    monkeypatch.setenv("COLUMNS", columns)
    for command in COMMANDS:
        told = here(command, "--help").out
        about, _, options = told.partition("positional arguments:\n" if "positional" in told else "options:\n")
        sentences = [line for line in about.splitlines() if not line.startswith(" ")]
        assert max(map(len, [*sentences, *options.partition("examples:\n")[0].splitlines()])) <= width
        doc = " ".join((module_of(command).__doc__ or "").split())
        assert doc in " ".join(told.split())
        commands = [line for line in (module_of(command).__doc__ or "").splitlines() if line.startswith("  ")]
        assert [line for line in commands if line not in told] == []


def test_help_has_the_examples(here: Callable[..., Any]) -> None:
    for command in COMMANDS:
        ended = here(command, "--help")
        block = ended.out.partition("examples:\n")[2].splitlines()
        assert [line.strip() for line in block if line] == list(module_of(command).EXAMPLES)
        assert all(len(line) <= 110 for line in block)
        assert ended.out.count("\n") <= 70, "it is looked at in a terminal"
    assert "examples:" in here("--help").out


def test_examples_of_the_scripts_write_them(here: Callable[..., Any], tmp_path: Path) -> None:
    for command in ("completion", "man"):
        for line in examples(command):
            words, _, target = re.split(r" ([>|]) ?", line)
            out = here(*shlex.split(words)[1:]).out
            assert len(out) > 2000
            assert target
