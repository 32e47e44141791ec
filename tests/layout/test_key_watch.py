"""Honest keys are admitted, however many; keys that make a dict slow are not, and soon."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

import pytest
from slow_keys import same_hash, same_way

from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.layout.key_watch import KeyWatch, makes_slow
from fastckpt.layout.tree import decode_tree, encode_tree

COUNT = 30_000
RANDOM = random.Random(0)
HONEST: dict[str, Iterable[int]] = {
    "of an optimizer": range(1_000_000),
    "from anywhere": range(123_456_789, 123_456_789 + COUNT),
    "below 0": range(-COUNT, 0),
    "down": range(COUNT, 0, -1),
    "shuffled": RANDOM.sample(range(COUNT), COUNT),
    "random": [RANDOM.getrandbits(63) for _ in range(COUNT)],
    "very long": [RANDOM.getrandbits(2000) for _ in range(COUNT)],
    "addresses": range(0x7F00_0000_0000, 0x7F00_0000_0000 + 64 * COUNT, 64),
    "in the highest bits": [number << 44 for number in range(COUNT)],
    "powers of two": [1 << number for number in range(2000)],
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", HONEST)
def test_honest_keys_are_admitted(kind: str) -> None:
    assert not makes_slow(HONEST[kind])


@pytest.mark.parametrize("kind", ["down", "random", "in the highest bits"])
def test_a_state_with_honest_keys_comes_back(kind: str) -> None:
    state = dict.fromkeys(HONEST[kind])
    assert decode_tree(encode_tree(state, lambda value, path: value), 0) == state


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def admitted(keys: Iterable[int]) -> int:
    """How many of them get in."""
    watch, into = KeyWatch(), dict[int, None]()
    for key in keys:
        if not watch.admits(key, into):
            break
        into[key] = None
    return len(into)


@pytest.mark.thorough
@pytest.mark.parametrize(("make", "count"), [(same_hash, 8_000), (same_way, 60_000)])
def test_slow_keys_are_refused_before_they_are_slow(make: Callable[[int], list[int]], count: int) -> None:
    keys, honest = make(count), range(count)
    assert seconds(lambda: dict.fromkeys(keys)) > 20 * seconds(lambda: dict.fromkeys(honest)), "this proves nothing"
    assert admitted(keys) < len(keys)
    assert seconds(lambda: admitted(keys)) < 50 * seconds(lambda: admitted(honest))
    with pytest.raises(UnsupportedStateError, match="slow"):
        encode_tree(dict.fromkeys(keys), lambda value, path: value)


def test_a_key_that_takes_long_is_not_set_again_and_again() -> None:
    watch, into = KeyWatch(), dict.fromkeys(same_hash(300))
    slowest = list(into)[-1]
    assert not all(watch.admits(slowest, into) for _ in range(10_000))


def test_a_tree_with_slow_keys_is_refused() -> None:
    keys = b"".join(b"\x03\x14" + key.to_bytes(20, "little") + b"\0" for key in same_hash(2000))
    with pytest.raises(DamagedError, match="slow"):
        decode_tree(b"\x0a\xd0\x0f" + keys, 0)
