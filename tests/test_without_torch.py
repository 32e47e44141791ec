"""Without torch: what needs none works, what needs it says how to get it, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastckpt

INSTALL = "pip install 'fastckpt[torch]'"
PROGRAM = """
import sys
for name in ("torch", "numpy"):
    sys.modules[name] = None
"""
COMMAND = PROGRAM + "from fastckpt.cli.main import main; sys.exit(main(sys.argv[1:]))"


def without_torch(program: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in all formats, one that differs, and one that is cut."""
    directory = tmp_path_factory.mktemp("files")
    state = {"w": torch.arange(90_000.0), "t": torch.ones(3, 200).t(), "n": torch.ones(5), "step": 3}
    for suffix, save in (("fckpt", fastckpt.save), ("pt", torch.save)):
        save(state, directory / f"a.{suffix}")
        save({**state, "w": state["w"] + 1}, directory / f"b.{suffix}")
        save({**state, "t": torch.ones(200, 3)}, directory / f"c.{suffix}")
    (directory / "cut.pt").write_bytes((directory / "a.pt").read_bytes()[:-2000])
    return directory


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("--version", 0, "fastckpt "),
        ("inspect a.pt", 0, "90,605 elements"),
        ("inspect --engine", 0, "simd "),
        ("verify a.pt a.fckpt", 0, "2 intact"),
        ("salvage cut.pt -o {out}/r.pt", 3, "wrote"),
        ("salvage cut.pt -o {out}/r2.pt --backfill a.pt", 1, "(complete)"),
        ("convert a.pt {out}/a.fckpt", 0, "exact way back kept"),
        ("convert a.fckpt {out}/b.pt", 0, "3 tensors"),
        ("convert a.fckpt {out}/b.safetensors --keys [wn]", 0, "2 tensors"),
        ("diff a.fckpt a.pt", 0, "identical: 3 tensors, every bit"),
        ("diff a.fckpt b.fckpt", 1, f"only with torch: {INSTALL}"),
        ("diff a.pt b.pt", 1, "2 identical, 1 differ"),
        ("diff --digests a.fckpt b.fckpt", 1, "2 by digests"),
        ("diff --structure-only a.pt b.pt", 0, "same structure"),
    ],
)
def test_what_works(files: Path, tmp_path: Path, command: str, code: int, words: str) -> None:
    ended = without_torch(COMMAND, *(word.format(out=tmp_path) for word in command.split()), cwd=files)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize("command", ["plot a.fckpt", "demo", "diff a.fckpt c.fckpt", "convert a.fckpt x.safetensors"])
def test_what_does_not_says_how_to_get_torch(files: Path, command: str) -> None:
    before = sorted(files.iterdir())
    ended = without_torch(COMMAND, *command.split(), cwd=files)
    assert ended.returncode == 64
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert f"which is not installed. Next: {INSTALL}" in ended.stderr
    assert sorted(files.iterdir()) == before


def test_python(files: Path) -> None:
    program = (
        PROGRAM
        + f"""
import fastckpt
assert fastckpt.verify("a.pt").ok
assert fastckpt.salvage("cut.pt").tensors
for name in ("load", "load_into", "open", "save", "stream", "rng_state", "verify_tensors"):
    try:
        getattr(fastckpt, name)
    except fastckpt.errors.MissingPackageError as error:
        assert isinstance(error, ImportError) and error.next_step == {INSTALL!r}, error
    else:
        raise AssertionError(name)
assert fastckpt.Retention(keep_last=2) and fastckpt.nanochat.install
"""
    )
    ended = without_torch(program, cwd=files)
    assert ended.returncode == 0, ended.stderr


def test_a_torch_that_cannot_be_imported_says_so_itself(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import libnotthere\n")
    ended = subprocess.run(
        [sys.executable, "-c", "import fastckpt; fastckpt.load"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "No module named 'libnotthere'" in ended.stderr
    assert INSTALL not in ended.stderr
