"""The ranks that the tests of this directory give jobs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rank_group import RankGroup


@pytest.fixture(scope="session")
def group_of() -> Iterator[Callable[[int], RankGroup]]:
    """So many ranks, started once."""
    groups: dict[int, RankGroup] = {}
    with ExitStack() as stack:

        def group_of(world: int) -> RankGroup:
            if world not in groups or groups[world].is_closed:
                groups[world] = stack.enter_context(RankGroup(Path(__file__).with_name("ranks.py"), world))
            return groups[world]

        yield group_of
