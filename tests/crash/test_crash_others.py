"""What writes a file besides save: one failing write or close is a typed error, and never half a file."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from crash_lab import TEMP_SUFFIX, Action, Host
from write_others import COMMANDS

import fastckpt

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    state = {"w": torch.arange(3000.0)}
    torch.save(state, directory / "in.pt")
    fastckpt.save(state, directory / "in.fckpt")
    return directory


@pytest.fixture(scope="module")
def host(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    root = tmp_path_factory.mktemp("others").resolve()
    with Host(HERE / "write_others.py", root, shim) as running:
        yield running, root


CASES = [
    pytest.param(number, id=" ".join(words), marks=() if words[-1] in ("out.pt", "out.html") else pytest.mark.slow)
    for number, words in enumerate(COMMANDS)
]


@pytest.mark.sampled(9)
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("number", CASES)
def test_each_call_fails_once(host: tuple[Host, Path], good: Path, number: int, every: int) -> None:
    """Or every fifth one of them."""
    running, root = host
    written = root / COMMANDS[number][-1]
    for call in range(1, 1000, every):
        shutil.rmtree(root)
        shutil.copytree(good, root)
        outcome = running.run(root, number, action=Action.FAIL, number=call, error=errno.EIO)
        assert outcome.how in ("saved", "typed error"), outcome
        assert written.exists() == (outcome.how == "saved" or "in place" in outcome.message), outcome
        assert not [path for path in root.iterdir() if path.name.endswith(TEMP_SUFFIX)], outcome
        if not outcome.hit:
            assert outcome.how == "saved", outcome
            assert call > 8, "the shim sees too few calls to prove anything"
            return
    raise AssertionError("there is no end of calls")
