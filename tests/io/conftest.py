"""Fixtures for tests of files: another user's rights, and a file to replace."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from old_file import OLD

NOBODY = 65534


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that any user can reach and only its owner can write to."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


@contextmanager
def _unprivileged() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(os.getgid())
        os.setgroups(groups)


@pytest.fixture
def unprivileged() -> Callable[[], AbstractContextManager[None]]:
    """Within it, root has the rights of nobody; any other user keeps their own."""
    return _unprivileged


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "model.fckpt"
    path.write_bytes(OLD)
    return path
