"""Flat names: readable, unique, and the same every time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.layout.names import flat_names

# Few different keys, so that paths collide often.
keys = st.sampled_from(["a", "b", "a.b", "a#2", "b#2", "#2", "", ".", 1, "1", 0, -1])
paths = st.lists(st.lists(keys, max_size=3).map(tuple), max_size=15, unique=True)


def plain(path: tuple[object, ...]) -> str:
    return ".".join(map(str, path)) or "tensor"


@given(paths)
def test_unique(found: list[tuple[object, ...]]) -> None:
    names = flat_names(found)
    assert len(names) == len(found) == len(set(names))


@given(paths)
def test_the_first_of_a_kind_keeps_its_plain_name(found: list[tuple[object, ...]]) -> None:
    seen = set()
    for path, name in zip(found, flat_names(found), strict=True):
        if plain(path) not in seen:
            assert name == plain(path)
        else:
            assert name.startswith(plain(path) + "#")
        seen.add(plain(path))


@given(paths)
def test_names_without_collision_are_plain(found: list[tuple[object, ...]]) -> None:
    count = Counter(map(plain, found))
    for path, name in zip(found, flat_names(found), strict=True):
        if count[plain(path)] == 1:
            assert name == plain(path)


@given(paths)
def test_rule_of_the_specification(found: list[tuple[object, ...]]) -> None:
    """SPEC.md, section 8.3, word for word."""
    plain_names = {plain(path) for path in found}
    given_names: list[str] = []
    for path in found:
        candidate, k = plain(path), 2
        while candidate in given_names or (candidate != plain(path) and candidate in plain_names):
            candidate = f"{plain(path)}#{k}"
            k += 1
        given_names.append(candidate)
    assert flat_names(found) == given_names


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ([], []),
        ([()], ["tensor"]),
        ([("model", "layers", 0, "w")], ["model.layers.0.w"]),
        ([("a", "__dict__", "t")], ["a.__dict__.t"]),
        ([("a.b",), ("a", "b")], ["a.b", "a.b#2"]),
        ([(1,), ("1",)], ["1", "1#2"]),
        ([("a.b",), ("a", "b"), ("a.b#2",)], ["a.b", "a.b#3", "a.b#2"]),
        ([("",), ("tensor",)], ["tensor", "tensor#2"]),
        ([(-5,)], ["-5"]),
    ],
)
def test_examples(found: list[tuple[object, ...]], names: list[str]) -> None:
    assert flat_names(found) == names


def test_many_collisions_are_not_quadratic() -> None:
    found = [tuple("a" if n >> bit & 1 else "a.a" for bit in range(14)) for n in range(1 << 14)]
    assert len(set(flat_names(found))) == 1 << 14
