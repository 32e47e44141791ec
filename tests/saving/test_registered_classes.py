"""Classes that are registered, and those that nobody registered."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch

import fastckpt
from fastckpt.errors import (
    UnsupportedStateError,
    UsageError,
)

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class Anything:
    pass


def test_a_class_that_nobody_registered_is_never_imported(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text(
        "import dataclasses, enum, typing, fastckpt\n"
        "class Colour(enum.Enum):\n    RED = [1]\n"
        "class Pair(typing.NamedTuple):\n    x: int\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config:\n    rate: float\n"
        "class Own: pass\n"
        "fastckpt.register(Own, lambda own: [1], lambda plain: Own())\n"
        "fastckpt.save([Colour.RED, Pair(1), Config(0.5), Own(), {Colour.RED: 1}], 's')\n"
    )
    assert forked.run("-c", "import gone", cwd=tmp_path).returncode == 0
    loaded = fastckpt.load(tmp_path / "s")
    red = fastckpt.Placeholder("enum", "gone.Colour", {"name": "RED", "value": [1]})
    assert loaded == [
        red,
        fastckpt.Placeholder("namedtuple", "gone.Pair", {"x": 1}),
        fastckpt.Placeholder("dataclass", "gone.Config", {"rate": 0.5}),
        fastckpt.Placeholder("registered", "gone.Own", [1]),
        {red: 1},
    ]
    assert "gone" not in sys.modules
    fastckpt.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()


def test_a_registered_class_that_changed_is_named(tmp_path: Path) -> None:
    fastckpt.save(fastckpt.Placeholder("dataclass", "states.Config", {"other": 1}), tmp_path / "s")
    with pytest.raises(UnsupportedStateError, match=r"states\.Config.*no field other"):
        fastckpt.load(tmp_path / "s")
    fastckpt.save(fastckpt.Placeholder("enum", "states.Colour", {"name": "BLUE", "value": 9}), tmp_path / "s")
    with pytest.raises(UnsupportedStateError, match=r"states\.Colour.*9"):
        fastckpt.load(tmp_path / "s")


@pytest.mark.parametrize(
    ("functions", "name", "words"),
    [
        ((), None, "no enum"),
        ((str,), None, "both"),
        ((str, str), "nodot", "dot"),
        ((str, str), "test.Scale", "registered for"),
    ],
)
def test_register_refuses_what_cannot_be_meant(functions: tuple[Any, ...], name: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fastckpt.register(Anything, *functions, name=name)


@pytest.mark.parametrize("cls", [dict, int, type(None), torch.Tensor, torch.nn.Parameter, Anything()])
def test_register_refuses_what_save_would_never_ask_for(cls: Any) -> None:
    with pytest.raises(UsageError, match=r"as it is, and cannot be registered|takes a class"):
        fastckpt.register(cls, str, str)


class Made:
    """Makes the array that is saved anew each time: nothing else holds it."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_arrays_that_a_registered_class_makes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.layout.register._by_name", {})
    monkeypatch.setattr("fastckpt.layout.register._by_class", {})
    # With gaps, so that a copy is saved; the array itself is gone, and the next one gets its place in memory.
    fastckpt.register(Made, lambda made: np.full(64, made.number)[::2], lambda plain: Made(int(plain[0])))
    fastckpt.save([Made(number) for number in range(20)], tmp_path / "s")
    assert [made.number for made in fastckpt.load(tmp_path / "s")] == list(range(20))


class Raising:
    """A class whose functions raise."""


def _raise(value: Any) -> Any:
    raise ZeroDivisionError(f"of {type(value).__name__}")


def test_a_registered_function_that_raises_is_named_with_its_place(tmp_path: Path) -> None:
    fastckpt.register(Raising, _raise, _raise)
    with pytest.raises(UnsupportedStateError, match="2 things cannot be stored") as caught:
        fastckpt.save({"a": [Raising()], "b": print}, tmp_path / "a.fckpt")
    assert "state['a'][0]: the to_plain registered for " in str(caught.value)
    assert "raises ZeroDivisionError: of Raising" in str(caught.value)
    fastckpt.register(Raising, lambda _: {"w": torch.ones(2)}, _raise)
    fastckpt.save({"a": [Raising()]}, tmp_path / "a.fckpt")
    with pytest.raises(
        UnsupportedStateError, match=r"the from_plain registered for .* raises ZeroDivisionError: of dict"
    ):
        fastckpt.load(tmp_path / "a.fckpt")
    assert fastckpt.load(tmp_path / "a.fckpt", keys="*")["a.0.w"].equal(torch.ones(2))


@pytest.mark.parametrize("what", [5, "a.b", Raising()])
def test_register_takes_classes(what: Any) -> None:
    with pytest.raises(UsageError, match="register takes a class"):
        fastckpt.register(what, str, str)
