"""Property tests draw the same examples, whatever ran before them in the process."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider

from fastckpt.constants import MAGIC_MANIFEST

VALUES = st.lists(st.integers() | st.text() | st.floats(allow_nan=False) | st.binary())


def drawn() -> list[object]:
    seen: list[object] = []

    @settings(max_examples=200, derandomize=True, database=None)
    @given(VALUES)
    def see(values: list[object]) -> None:
        seen.append(values)

    see()
    return seen


def test_what_is_imported_meanwhile_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawn()
    source = "NUMBERS = (123_456_789, 0.123)\nWORDS = ('a word', b'some bytes')\n"
    (tmp_path / "imported_meanwhile.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("imported_meanwhile")
    assert drawn() == before


def test_constants_of_the_package_are_among_them() -> None:
    assert MAGIC_MANIFEST in HypothesisProvider(None)._local_constants.bytes
