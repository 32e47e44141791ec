"""What a verdict claims, as a table: what must be true for it, and inputs that break just that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fastckpt.cli.main import main
from fastckpt.verdicts import Verdict

Make = Callable[[Path], list[Path]]
"""Makes what is asked about in an empty directory: one file or directory, or the two sides of a comparison."""


class Told(NamedTuple):
    """What a command said."""

    code: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


Tell = Callable[..., Told]
"""Runs a command."""
Ask = Callable[[Tell, list[Path]], bool]
"""Whether a command makes the claim about some inputs."""


class Row(NamedTuple):
    """One thing that must be true.

    Attributes:
        must: It.
        broken: Inputs of which just this is not true, by ``format: what``.
    """

    must: str
    broken: dict[str, Make]


class Claim(NamedTuple):
    """A verdict.

    Attributes:
        verdict: The word.
        asks: All ways in which a user is told it, by name.
        true: Inputs of which it is true, by format.
        rows: What must be true for it.
    """

    verdict: Verdict
    asks: dict[str, Ask]
    true: dict[str, Make]
    rows: list[Row]


def teller(capsys: pytest.CaptureFixture[str]) -> Tell:
    """What runs a command and says what it said."""

    def tell(*words: object) -> Told:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Told(code, captured.out if "--json" in words else captured.out + captured.err)

    return tell


def made(claim: Claim, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, bool]:
    """Whether each way of asking makes the claim."""
    tell = teller(capsys)
    inputs = make(tmp_path)
    return {name: ask(tell, inputs) for name, ask in claim.asks.items()}


Ask = Callable[[Tell, list[Path]], bool]


def each_with_its_own(asks: dict[str, Ask]) -> dict[str, Ask]:
    """Asking heals: the next way of asking gets the damaged files again."""
    return {name: _with_its_own(ask) for name, ask in asks.items()}


def _with_its_own(ask: Ask) -> Ask:
    def asked(tell: Tell, inputs: list[Path]) -> bool:
        before = {path: path.read_bytes() for path in inputs[0].parent.iterdir()}
        said = ask(tell, inputs)
        for path in inputs[0].parent.iterdir():
            path.unlink()
        for path, raw in before.items():
            path.write_bytes(raw)
        return said

    return asked
