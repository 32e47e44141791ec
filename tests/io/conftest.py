"""Fixtures for tests of files: another user's rights, a small file system."""

from __future__ import annotations

import os
import shutil
import subprocess
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
def small_fs(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "model.fckpt"
    path.write_bytes(OLD)
    return path
