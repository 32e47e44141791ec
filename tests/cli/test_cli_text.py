"""The small functions that make text: collapsed names, sizes, durations, strict JSON values."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.cli.render import columns, value_text
from fastckpt.stored.plain import plain
from fastckpt.text import (
    collapse,
    count_text,
    duration_text,
    numbers_text,
    quoted,
    rate_text,
    share_text,
    shown_path,
    size_text,
)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([7], "7"),
        ([0, 1, 2, 3], "{0..3}"),
        ([3, 1], "{1,3}"),
        ([2, 6, 10, 14], "{2,6,10,14}"),
        (range(1, 17, 2), "{1,3,5,7,9,11,13,15}"),
        (range(1, 200, 2), "{1..199 step 2}"),
        ([0, 1, 2, 9, 11, 12], "{0..2,9,11,12}"),
        ([0, 4, 8], "{0,4,8}"),
    ],
)
def test_numbers(numbers, text):
    assert numbers_text(numbers) == text


def test_layers_collapse_and_odd_ones_stay_apart():
    names = [f"h.{i}.w" for i in range(4)] + ["h.1.gate", "h.3.gate", "head"]
    items = [(name, 5 if name == "h.2.w" else 4) for name in names]
    found = [(group.name, group.times, group.like) for group in collapse(items)]
    assert found == [("h.{0,1,3}.w", 3, 4), ("h.2.w", 1, 5), ("h.{1,3}.gate", 2, 4), ("head", 1, 4)]


def test_products_of_two_numbers():
    names = [f"h.{i}.experts.{j}" for i, j in itertools.product(range(3), range(8))]
    assert [g.name for g in collapse((name, 0) for name in names)] == ["h.{0..2}.experts.{0..7}"]
    names.remove("h.1.experts.5")
    found = [g.name for g in collapse((name, 0) for name in names)]
    assert found == ["h.{0,2}.experts.{0..7}", "h.1.experts.{0..4,6,7}"]


def spelled(segment: str) -> list[str]:
    """The numbers that a collapsed segment stands for, by an independent reading."""
    if not segment.startswith("{"):
        return [segment]
    with_step = re.fullmatch(r"\{(\d+)\.\.(\d+) step (\d+)\}", segment)
    if with_step:
        first, last, step = map(int, with_step.groups())
        return [str(n) for n in range(first, last + 1, step)]
    numbers: list[str] = []
    for part in segment[1:-1].split(","):
        first, _, last = part.partition("..")
        numbers += map(str, range(int(first), int(last or first) + 1))
    return numbers


names_of = st.lists(
    st.sampled_from(["a", "b", "0", "1", "2", "3", "5", "8", "10", "01", ""]), min_size=1, max_size=4
).map(".".join)


@given(st.dictionaries(names_of, st.integers(0, 1), max_size=60))
def test_a_collapsed_name_stands_for_exactly_its_names(items):
    back = {}
    for group in collapse(items.items()):
        names = [".".join(parts) for parts in itertools.product(*map(spelled, group.segments))]
        assert len(names) == group.times
        for name in names:
            assert name not in back
            back[name] = group.like
    assert back == items


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (16_791_047, "16.8 MB"),
        (1_630_000_000, "1.63 GB"),
        (999_999_999, "1.00 GB"),
        (786_432, "786 kB"),
        (12_345_000_000_000_000, "12345 TB"),
    ],
)
def test_sizes(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0.4 ms"), (0.12, "0.12 s"), (1.25, "1.2 s"), (59.96, "1 min 0 s"), (125, "2 min 5 s")],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_counts_and_rates():
    assert (count_text(1, "tensor"), count_text(1234, "tensor")) == ("1 tensor", "1,234 tensors")
    assert rate_text(15_000_000_000, 1.0) == "15.0 GB/s"


def test_plain_values():
    assert plain({1: (float("inf"), b"\x01"), "x": 1 << 9000}) == {"1": ["Infinity", "01"], "x": hex(1 << 9000)}
    assert value_text("x" * 200, 10) == "'xxxxxx..."


def test_columns():
    assert columns([["a", "1"], ["bbb", "22"]], right=(1,)) == ["  a     1", "  bbb  22"]


@pytest.mark.parametrize(
    ("part", "total", "text"),
    [
        (8_860_000, 15_700_000, "8.86 of 15.7 MB"),
        (31_200, 15_700_000, "31.2 kB of 15.7 MB"),
        (15_700_000, 15_700_000, "all 15.7 MB"),
        (15_699_999, 15_700_000, "all but 1 B of 15.7 MB"),
        (0, 15_700_000, "none of 15.7 MB"),
        (3, 12, "3 of 12 B"),
        (0, 0, "all 0 B"),
    ],
)
def test_a_share_is_never_rounded_to_all(part, total, text):
    assert share_text(part, total) == text


@pytest.mark.parametrize(
    "name", ["a b", "a\nb", "a\\nb", "it's", "-w.pt", "\x1b[2J", "a\udcffb", "\u2028'\\", "caf\u00e9"]
)
def test_a_path_that_is_pasted_names_the_file(name: str) -> None:
    """Also one with line breaks, bytes that are no text, or what steers a terminal."""
    typed = quoted(name)
    assert typed.isprintable()
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    echoed = subprocess.run([bash, "-c", f"printf %s {typed}"], capture_output=True, check=True).stdout
    assert os.path.normpath(os.fsdecode(echoed)) == os.path.normpath(name)


def test_names_that_differ_are_shown_differently() -> None:
    names = ["a\nb", "a\\nb", "a\\x0ab", "a\tb"]
    assert len({shown_path(name) for name in names}) == len(names)
    assert shown_path("plain name") == "plain name"
