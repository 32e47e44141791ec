"""A question about the page cache must not change the answer to the next one."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fastckpt import _core
from fastckpt.io.residency import is_warm, reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import default_threads, direct_threads

SIZE = 64 * 2**20


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file that the page cache has given up."""
    path = tmp_path / "cold"
    with open(path, "wb") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if _core.cached_bytes(file.fileno(), SIZE) != 0:
            pytest.skip("this file system keeps what it is asked to give up")
    return path


def test_asked_twice_a_cold_file_is_still_cold(cold: Path) -> None:
    for _ in range(3):
        with Source(cold) as source:
            assert not is_warm(source)
            assert _core.cached_bytes(source.fd, source.size) == 0
            assert reading_threads(source, None) == direct_threads(None)


def test_a_file_that_was_read_is_warm(cold: Path) -> None:
    # A system short of memory may take single pages back at any moment, so the count is asked
    # for until a reading was left alone, and never has to be whole for the file to be warm.
    for _ in range(20):
        cold.read_bytes()
        with Source(cold) as source:
            counted = _core.cached_bytes(source.fd, source.size)
            assert is_warm(source)
            assert reading_threads(source, None) == default_threads()
        assert counted is not None
        assert SIZE * 0.95 <= counted <= SIZE
        if counted == SIZE:
            return
    pytest.skip("this system is too short of memory to keep 64 MiB in the page cache")


def test_the_answer_belongs_to_the_open_file(cold: Path) -> None:
    with Source(cold) as source:
        assert not is_warm(source)
        source.read(0, source.size)
        assert not is_warm(source)
    with Source(cold) as source:
        assert is_warm(source)


def test_the_end_of_a_file_counts_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * 5000)
    with Source(path) as source:
        # Pages just written and not yet on the disk cannot be taken back.
        assert _core.cached_bytes(source.fd, source.size) == 5000


def test_a_descriptor_that_tells_nothing() -> None:
    assert _core.cached_bytes(-1, 4096) is None


def test_a_file_of_another_user_is_as_cold_as_it_is(
    public_dir: Path, unprivileged: Callable[[], AbstractContextManager[None]]
) -> None:
    """Linux calls every page of such a file cached. Samples depend on the moment: not each file has to be seen."""
    seen = []
    for number in range(5):
        path = public_dir / f"theirs-{number}"
        path.write_bytes(bytes(SIZE))
        path.chmod(0o644)
        with Source(path) as source:
            os.fsync(source.fd)
            source.drop_cache()
            if _core.cached_bytes(source.fd, SIZE) != 0:
                pytest.skip("this file system keeps what it is asked to give up")
        with unprivileged():
            for _ in range(3):
                with Source(path) as source:
                    seen.append(not is_warm(source))
                    assert reading_threads(source, None) == (direct_threads(None) if seen[-1] else default_threads())
            path.read_bytes()
            with Source(path) as source:
                assert is_warm(source)
        if all(seen[-3:]):
            return
    pytest.fail(f"cold files, each asked three times whether it is: {seen}")
