"""The example scripts: killed at their second checkpoint and begun again, each ends with the weights of one run."""

from __future__ import annotations

import importlib
import os
import runpy
import socket
import sys
import time
from pathlib import Path

import pytest
from libraries import begun, kill, needs

import fastckpt

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS = {
    "train_lightning": ("lightning", "--epochs", "epoch=*.ckpt"),
    "train_transformers": ("transformers", "--steps", "checkpoint-*"),
    "train_accelerate": ("accelerate", "--steps", "step_*"),
    "train_torchtitan": ("torchtitan", "--steps", "checkpoint/step-*/set.fckpt"),
}

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside these tests"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(row[0])) for name, row in STEPS.items()])
def test_an_example_that_is_killed_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, option, steps = STEPS[name]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    importlib.import_module(library)

    def begin(run: str) -> int:
        def work() -> None:
            with open(tmp_path / f"{run}.txt", "a") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            os.chdir(tmp_path)
            os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
            sys.stdout, sys.argv = os.fdopen(os.dup(1), "w"), [f"{name}.py", "--directory", run, option, "20"]
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

        return begun(work)

    first = begin("killed")
    while len(list((tmp_path / "killed").glob(steps))) < 2:
        assert os.waitpid(first, os.WNOHANG) == (0, 0), (tmp_path / "killed.txt").read_text()
        time.sleep(0.002)
    kill(first)
    ends = [os.waitpid(child, 0)[1] for child in (begin("killed"), begin("straight"))]
    assert ends == [0, 0], [(tmp_path / f"{run}.txt").read_text() for run in ("killed", "straight")]
    assert "going on" in (tmp_path / "killed.txt").read_text()
    assert "going on" not in (tmp_path / "straight.txt").read_text()
    roots = [
        [fastckpt.verify(path).root for path in sorted((tmp_path / run / "done").glob("*.fckpt"))]
        for run in ("killed", "straight")
    ]
    assert roots[0] == roots[1] != []
