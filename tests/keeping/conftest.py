"""Steps of every kind that is not nanochat's."""

from __future__ import annotations

import pytest
from other_steps import KINDS, Write


@pytest.fixture(params=KINDS)
def write(request: pytest.FixtureRequest) -> Write:
    return KINDS[request.param]
