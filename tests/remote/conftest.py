"""A bucket on a server of its own for each test, behind a proxy that can be told to fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bucket import Bucket


@pytest.fixture(scope="session")
def _server() -> tuple[str, int]:
    pytest.importorskip("moto.server", reason="needs moto, of the extra test")
    pytest.importorskip("obstore", reason="needs obstore, of the extra remote")
    from bucket import moto_server

    return moto_server()


@pytest.fixture
def bucket(_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket that the environment leads to, through `Bucket.proxy`."""
    from bucket import Bucket
    from faulty_proxy import FaultyProxy

    with FaultyProxy(_server) as proxy:
        made = Bucket(_server, proxy)
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made
