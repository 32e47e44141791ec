"""Hostile files cost in proportion to their size, in every command: SECURITY.md has the bounds as a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_files import BUILDERS, bad_leaves
from slowness import within

HERE = Path(__file__).parent
FEW = ("load", "salvage")
OTHERS = ("verify", "inspect", "tree", "convert", "export", "diff", "rescue", "plot")
"""Commands that read a file in no other way than those do, and then do more."""
Run = Callable[..., Any]

SECONDS, SECONDS_PER_MIB = 1.0, 8.0
"""CPU time of a command, as in SECURITY.md."""
MEMORY, MEMORY_PER_BYTE = 64 * 2**20, 200

REFUSED = ("zero-huge.pt", "zero-huge.safetensors", "zeros-and-factors.safetensors", "unknown-dtype.safetensors")


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a command under limits, in a child of one process."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, str(HERE / "under_limits.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(*arguments: object) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(list(map(str, arguments))) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def baseline(run: Run, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The memory of a command that does nothing."""
    return int(run("verify", tmp_path_factory.mktemp("nothing") / "none.pt")["memory"])


def line(command: str, path: Path) -> tuple[object, ...]:
    if command == "convert":
        return command, path, path.with_suffix(".out.pt" if path.suffix == ".fckpt" else ".out.fckpt")
    if command == "export":
        # Of a .safetensors only with tensors chosen: there is nothing else in it.
        chosen = ["--keys", "*"] if path.suffix == ".safetensors" else []
        return "convert", path, path.with_suffix(".out.safetensors"), *chosen
    if command == "rescue":
        return "salvage", path, "-o", path.with_suffix(".rescued.safetensors"), "--include", "unverified"
    if command == "tree":
        return "inspect", path, "--tree"
    if command == "plot":
        return command, path, "-o", path.with_suffix(".html")
    return (command, path, path, "--json") if command == "diff" else (command, path, *["--json"][: command != "load"])


def allowed(size: int) -> float:
    return SECONDS + SECONDS_PER_MIB * size / 2**20


def measured(run: Run, command: str, path: Path) -> Any:
    """What became of a command: run up to three times, in case the machine is slow at a moment."""
    for _ in range(3):
        ended = run(*line(command, path))
        if ended["seconds"] < allowed(path.stat().st_size):
            break
        for made in set(path.parent.iterdir()) - {path}:
            made.unlink()
    return ended


@pytest.mark.sampled(3)
@pytest.mark.parametrize("commands", [FEW, pytest.param(OTHERS, marks=pytest.mark.thorough)], ids=["few", "others"])
@pytest.mark.parametrize("name", BUILDERS)
def test_cost_is_in_proportion(name: str, commands: tuple[str, ...], run: Run, baseline: int, tmp_path: Path) -> None:
    path = tmp_path / name
    BUILDERS[name](path)
    size = path.stat().st_size
    for command in commands:
        ended = measured(run, command, path)
        assert ended["code"] in (0, 1, 2, 3, 4), (command, ended["code"], ended["err"][:500])
        assert "unexpected" not in ended["err"], (command, ended["err"][:500])
        assert ended["err"].count("\n") <= 1 or not ended["code"], (command, ended["err"][:500])
        assert within(ended["seconds"], allowed(size)), (command, size, ended["seconds"])
        assert ended["memory"] - baseline < MEMORY + MEMORY_PER_BYTE * size, (command, size, ended["memory"] - baseline)


@pytest.mark.parametrize("name", REFUSED)
def test_every_command_that_needs_the_tensors_refuses(name: str, run: Run, tmp_path: Path) -> None:
    """With the same exit code as verify."""
    path = tmp_path / name
    BUILDERS[name](path)
    codes = {command: run(*line(command, path))["code"] for command in ("load", "inspect", "verify", "convert", "diff")}
    assert set(codes.values()) == {2}, codes


@pytest.mark.parametrize("command", ["load", "verify", "salvage"])
@pytest.mark.parametrize(("chunks", "count"), [(4, 300), pytest.param(16, 3_000, marks=pytest.mark.thorough)])
def test_much_damage_under_many_tensors(
    command: str, chunks: int, count: int, run: Run, baseline: int, tmp_path: Path
) -> None:
    """Each of 32 bad ranges for each chunk is in each tensor."""
    path = tmp_path / "bad-leaves.fckpt"
    bad_leaves(path, chunks, count)
    size = path.stat().st_size
    ended = measured(run, command, path)
    assert ended["code"] == 2, ended
    assert within(ended["seconds"], allowed(size)), (size, ended["seconds"])
    # Chunks are decoded.
    assert ended["memory"] - baseline < MEMORY + MEMORY_PER_BYTE * size, (size, ended["memory"] - baseline)
