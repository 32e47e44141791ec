"""Fixtures of the crash laboratory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from crash_lab import CrashLab, Host, OpenLab, compile_shim


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def open_lab(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenLab]:
    """A laboratory for a script of this directory, opened once per module."""
    labs: dict[str, CrashLab] = {}
    with ExitStack() as stack:

        def open_lab(script: str, *, target: str = "model.fckpt") -> CrashLab:
            if script not in labs:
                path = Path(__file__).parent / script
                labs[script] = stack.enter_context(CrashLab(path, tmp_path_factory.mktemp("crash"), shim, target))
            return labs[script]

        yield open_lab


@pytest.fixture(scope="module")
def repair_host(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    """Runs repairs, and the directory that they are in."""
    root = tmp_path_factory.mktemp("repair").resolve()
    with Host(Path(__file__).parent / "repair_file.py", root, shim) as running:
        yield running, root
