"""The JSON of the commands is what the standard library would make of the same plain values."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import pytest

from fastckpt.cli.write_json import write_json
from fastckpt.stored.plain import plain
from fastckpt.verdicts import Verdict


@dataclass
class Facts:
    name: str
    parts: list[int] = field(default_factory=list)


class Pair(NamedTuple):
    a: int
    b: str


VALUES: list[Any] = [
    None,
    [],
    {},
    [[], {}, [[]]],
    {"a": {}, "b": [1, True, 1.0, None, False, 0]},
    {"x": [math.inf, -math.inf, math.nan, 1e300, -0.0]},
    {1: "an int key", "text": 'quotes " and \\ and \n, é, \U0001f600, \ud800'},
    {True: 1, None: 2, 2.5: 3},
    {"bytes": b"\x00\xff", "long": 1 << 9000, "set": {1}},
    Pair(1, "x"),
    Verdict.INTACT,
]


def written(value: object) -> str:
    pieces: list[str] = []
    write_json(value, pieces.append)
    return "".join(pieces)


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_as_the_standard_library(value: object) -> None:
    assert written(value) == json.dumps(plain(value), indent=2, allow_nan=False)


def test_dataclasses_are_their_fields() -> None:
    facts = Facts("a", [1, 2])
    assert json.loads(written({"facts": [facts]})) == {"facts": [asdict(facts)]}


def test_two_keys_with_one_text_are_one() -> None:
    assert json.loads(written({1: "int", "1": "text"})) == {"1": "text"}
