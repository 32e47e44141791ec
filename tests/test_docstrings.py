"""Every public name has an example in its docstring, and it runs as it stands there."""

from __future__ import annotations

import doctest
import inspect
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastckpt
import fastckpt.dcp
import fastckpt.nanochat

sys.path.append(str(Path(__file__).parent / "nanochat"))
import nanochat_standin
from nanochat_ranks import write_ranks

PUBLIC = [(module, name) for module in (fastckpt, fastckpt.dcp, fastckpt.nanochat) for name in module.__all__]


@pytest.fixture
def _prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The small files that the examples name, and a nanochat that can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(nanochat_standin.build(tmp_path / "checkout")))

    w = torch.arange(4.0)
    fastckpt.save({"bias": torch.zeros(8192), "w": w}, "state.fckpt")
    fastckpt.save({"w": w}, "weights.fckpt")
    torch.save({"w": w}, "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is one process.
        fastckpt.dcp.save({"w": w, "step": 3}, "step-3", no_dist=True)
    damaged = bytearray(Path("state.fckpt").read_bytes())
    damaged[damaged.index(w.numpy().tobytes())] ^= 1
    Path("damaged.fckpt").write_bytes(damaged)
    Path("sealed.bin").write_bytes(bytes(100_000))
    fastckpt.seal("sealed.bin", parity="3%")
    Path("sealed.bin").write_bytes(bytes(40_000) + b"x" + bytes(59_999))
    for step in (10, 20):
        fastckpt.save({"w": w}, f"checkpoints/step_{step}.fckpt")
        weights = {"w": torch.full((4,), float(step))}
        optimizer = {"state": {}, "param_groups": []}
        fastckpt.nanochat.save_checkpoint("base_checkpoints/d4", step, weights, optimizer, {"step": step})
    write_ranks(tmp_path / "two_ranks", 2)
    yield
    fastckpt.nanochat.uninstall()
    for module in [module for module in sys.modules if module.partition(".")[0] in ("nanochat", "scripts")]:
        del sys.modules[module]


@pytest.mark.usefixtures("_prepared")
@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_example_runs(module: object, name: str) -> None:
    found = getattr(module, name)
    text = inspect.getdoc(found)
    assert text is not None
    names = {"fastckpt": fastckpt, "torch": torch}
    example = doctest.DocTestParser().get_doctest(text, names, name, inspect.getsourcefile(found), 0)
    assert 1 <= len(example.examples) <= 3
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.attempted == len(example.examples)
    assert result.failed == 0, "".join(said)
