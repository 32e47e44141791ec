"""The nightly size runs only when it is asked for."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked nightly, unless ``-m`` names that marker."""
    if "nightly" in config.getoption("-m"):
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="runs for an hour or more: pytest -m nightly"))
