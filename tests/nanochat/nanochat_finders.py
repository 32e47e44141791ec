"""How nanochat chooses what to load, written from its documented behaviour; and a watch on it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest


def find_largest_model(checkpoints: Path) -> str:
    """The tag nanochat would load: the largest d<number>, else the directory changed last."""
    tags = [name for name in os.listdir(checkpoints) if os.path.isdir(checkpoints / name)]
    numbered = [(int(found[1]), tag) for tag in tags if (found := re.match(r"d(\d+)", tag))]
    if numbered:
        return max(numbered, key=lambda item: item[0])[1]
    return max(tags, key=lambda tag: os.path.getmtime(checkpoints / tag))


def find_last_step(directory: Path) -> int | None:
    """The step nanochat would load; None where it finds no model."""
    names = [name for name in os.listdir(directory) if re.search(r"model_(\d+)\.pt$", name)]
    return max((int(name.split("_")[-1].split(".")[0]) for name in names), default=None)


class Watch:
    """Checks, whenever it is asked, that nanochat would find a whole step of the same model, or none.

    Args:
        directory: The tag's directory, as nanochat wrote it.
        original: Its files then; by default those it holds now.
    """

    def __init__(self, directory: Path, original: dict[str, bytes] | None = None) -> None:
        self.directory = directory
        self.original = original or contents(directory)
        self.tag = find_largest_model(directory.parent)
        self.seen: list[int | None] = []

    def look(self) -> None:
        assert find_largest_model(self.directory.parent) == self.tag
        step = find_last_step(self.directory)
        if not self.seen or self.seen[-1] != step:
            self.seen.append(step)
        if step is not None:
            names = [name for name in self.original if f"_{step:06d}" in name]
            assert names, f"step {step} never was"
            for name in names:
                assert (self.directory / name).read_bytes() == self.original[name], f"{name} of visible step {step}"

    def on_every_change(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Look before and after each rename, removal and new directory."""
        for name in ("rename", "replace", "unlink", "mkdir"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, call: Callable[..., None]) -> Callable[..., None]:
        def watched(*args: object, **named: object) -> None:
            self.look()
            call(*args, **named)
            self.look()

        return watched


def contents(directory: Path) -> dict[str, bytes]:
    """Every file and its bytes."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}
