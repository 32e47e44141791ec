"""A state where a path has to be is an error that says what to type; nothing is written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt.errors import WrongTypeError

STATE = {"w": torch.ones(3)}


@pytest.mark.parametrize("path", ["a.fckpt", Path("a.fckpt")])
@pytest.mark.parametrize("name", ["save", "save_async", "load_into", "verify_tensors", "dcp.save", "dcp.load"])
def test_the_right_call_is_spelled_out(
    name: str, path: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call: Any = getattr(fastckpt.dcp if "." in name else fastckpt, name.removeprefix("dcp."))
    with pytest.raises(WrongTypeError, match="the state comes first, then the path") as caught:
        call(path, STATE)
    assert caught.value.next_step == f"fastckpt.{name}(state, 'a.fckpt')"
    assert isinstance(caught.value, TypeError)
    assert not list(tmp_path.iterdir())


def test_text_can_be_a_state(tmp_path: Path) -> None:
    fastckpt.save("text", tmp_path / "a.fckpt")
    fastckpt.save("text", stream := io.BytesIO())
    assert fastckpt.load(io.BytesIO(stream.getvalue())) == fastckpt.load(tmp_path / "a.fckpt") == "text"


@pytest.mark.parametrize(
    "call",
    [
        fastckpt.load,
        fastckpt.open,
        fastckpt.stream,
        fastckpt.verify,
        fastckpt.convert,
        fastckpt.salvage,
        fastckpt.seal,
        fastckpt.repair,
        fastckpt.find_last_whole,
        fastckpt.CheckpointDirectory,
        lambda state: fastckpt.backup(state, "copies"),
        lambda state: fastckpt.save({}, state),
    ],
)
def test_no_path(call: Callable[[Any], Any]) -> None:
    with pytest.raises(WrongTypeError, match="this is no path") as caught:
        list(call(STATE) or ())
    assert caught.value.actual == "dict"
