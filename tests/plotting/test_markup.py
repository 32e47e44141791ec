"""Words of pages: how wide they are at most, whatever script they are in."""

from __future__ import annotations

import pytest

from fastckpt.plotting.markup import fits, shortened


@pytest.mark.parametrize(
    ("words", "beginning", "end"),
    [
        ("", "", ""),
        ("weight", "weight", "weight"),
        ("attention.weight", "attenti…", "….weight"),
        ("日本語日", "日本語日", "日本語日"),
        ("日本語日本語", "日本語…", "…日本語"),
        ("a日本語日本語", "a日本語…", "…日本語"),
    ],
)
def test_words_are_shortened_to_columns(words: str, beginning: str, end: str) -> None:
    """A wide character counts twice, so a label is never wider than its place."""
    assert shortened(words, 8) == beginning
    assert shortened(words, 8, keep_end=True) == end


def test_a_wide_character_needs_two_places() -> None:
    assert fits("weight", 6 * 11 * 0.6 + 6)
    assert not fits("日本語日本語", 6 * 11 * 0.6 + 6)
