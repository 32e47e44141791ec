"""A tensor that changes while it is saved is torn, and the file is whole: the digests are those of what was written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import fastckpt

State = dict[str, torch.Tensor]


@contextmanager
def changing(tensors: State) -> Iterator[None]:
    """Another thread writes to the tensors all the while."""
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for tensor in tensors.values():
                tensor.add_(1)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def large() -> State:
    return {"weight": torch.zeros(3_000_000), "bias": torch.zeros(1_000_001)}


def small() -> State:
    """So small that they share packs."""
    return {f"layer.{number}": torch.zeros(3000) for number in range(400)}


@pytest.mark.parametrize("make", [large, small])
@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("durable", [True, False])
def test_a_save_that_returns_is_loadable(tmp_path: Path, make: Callable[[], State], codec: str, durable: bool) -> None:
    state = make()
    path = tmp_path / "state.fckpt"
    with changing(state):
        for _ in range(6):
            fastckpt.save(state, path, codec=codec, durable=durable)
            assert fastckpt.verify(path).ok
            assert fastckpt.load(path).keys() == state.keys()


def test_the_same_of_a_save_in_the_background(tmp_path: Path) -> None:
    state = large()
    path = tmp_path / "state.fckpt"
    with changing(state):
        for _ in range(4):
            fastckpt.save_async(state, path, durable=False).result()
            assert fastckpt.verify(path).ok
