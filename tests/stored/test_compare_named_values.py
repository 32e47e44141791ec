"""diff sees every difference inside of named values, and none where there is none."""

from __future__ import annotations

import argparse
import collections
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from states import arrays, python_values

import fastckpt
from fastckpt.cli.main import main

PAIRS: dict[str, tuple[Any, Any]] = {
    "True is not 1": ({1}, {True}),
    "float is not int": (frozenset({1}), frozenset({1.0})),
    "zero has a sign": ((0.0, {0.0}), (0.0, {-0.0})),
    "element": ({1, 2}, {1, 3}),
    "type": ({1}, frozenset({1})),
    "count": (collections.Counter(a=1), collections.Counter(a=2)),
    "tuple key beside a tensor": ({(1, 2): 1, "w": torch.ones(1)}, {(1, 3): 1, "w": torch.ones(1)}),
    "bool key beside a tensor": ({True: torch.ones(1)}, {"True": torch.ones(1)}),
    "attribute": (argparse.Namespace(lr=0.1, w=torch.ones(1)), argparse.Namespace(lr=0.2, w=torch.ones(1))),
    "factory": (
        collections.defaultdict(list, {"a": torch.ones(1)}),
        collections.defaultdict(set, {"a": torch.ones(1)}),
    ),
    "array": (arrays()["<f4"], arrays()["<f4"] + 1),
    "order of bytes": (arrays()[">i4"], arrays()[">i4"].astype("<i4")),
    "class": (
        fastckpt.Placeholder("dataclass", "a.A", {"w": torch.ones(1)}),
        fastckpt.Placeholder("dataclass", "a.B", {"w": torch.ones(1)}),
    ),
}


def verdict(tmp_path: Path, a: Any, b: Any) -> int:
    fastckpt.save({"state": a}, tmp_path / "a.fckpt")
    fastckpt.save({"state": b}, tmp_path / "b.fckpt")
    return main(["diff", str(tmp_path / "a.fckpt"), str(tmp_path / "b.fckpt")])


@pytest.mark.parametrize("name", PAIRS)
def test_a_difference_is_seen(tmp_path: Path, name: str) -> None:
    assert verdict(tmp_path, *PAIRS[name]) == 1


@pytest.mark.parametrize("make", [python_values, arrays])
def test_the_same_is_the_same(tmp_path: Path, make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One tensor more keeps equal root digests from answering."""
    assert verdict(tmp_path, [make(), {math.inf, None}], [make(), {None, math.inf}]) == 0
    assert verdict(tmp_path, [make(), torch.ones(1)], [make(), torch.zeros(1)]) == 1
    said = capsys.readouterr().out
    assert said.count("values changed") + said.count("value changed") == 0


def test_inspect_shows_them_as_python_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {
        "counter": collections.Counter(a=2),
        "place": python_values()["paths"][1],
        "colour": fastckpt.Placeholder("enum", "my.Colour", {"name": "RED", "value": 1}),
        "rate": arrays()["<f4"].dtype.type(0.5),
        "format": torch.channels_last,
    }
    fastckpt.save(state, tmp_path / "s.fckpt")
    assert main(["inspect", str(tmp_path / "s.fckpt")]) == 0
    said = capsys.readouterr().out
    for text in (
        "Counter({'a': 2})",
        "PurePosixPath('.')",
        "<my.Colour.RED: 1>",
        "numpy.float32 0.5",
        "torch.channels_last",
    ):
        assert text in said
