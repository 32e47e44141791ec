"""Random damage to files with parity inside, against an exact oracle.

A covered leaf comes back if and only if no more leaves of its group are lost, those of parity among them, than there
are leaves of parity; and if all do, the whole file is what it was, whatever its end is. Where no digest is left, the
section is made again, if all around it is as it was and its share is one that can be asked for. No byte is ever
wrong. A few cases run by default, 3,000 in the long form; ``FASTCKPT_REPAIR_CASES`` says how many instead.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import NamedTuple

import pytest
import reference_inside
from random_damage import KINDS, run_cases

torch = pytest.importorskip("torch")

import fastckpt  # noqa: E402
from fastckpt.constants import LEAF_SIZE as LEAF  # noqa: E402
from fastckpt.errors import DamagedError, MismatchError  # noqa: E402
from fastckpt.seals.parity import PARITIES, Parity  # noqa: E402

CASES = int(os.environ.get("FASTCKPT_REPAIR_CASES", "0"))
SHARES = {"3%": Parity(64, 2), "10%": Parity(20, 2), "one row": Parity(9, 1), "three rows": Parity(11, 3)}
SIZES = [1, 200_000, 1_100_000, 2_500_000]


class Good(NamedTuple):
    """A file with parity inside."""

    raw: bytes
    inside: reference_inside.Inside


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> list[Good]:
    path = tmp_path_factory.mktemp("goods") / "s.fckpt"
    made = []
    with pytest.MonkeyPatch.context() as patch:
        for share, parity in SHARES.items():
            patch.setitem(PARITIES, share, parity)
        for number, (share, size) in enumerate((share, size) for share in SHARES for size in SIZES):
            noise = torch.frombuffer(bytearray(random.Random(size).randbytes(size)), dtype=torch.uint8)
            state = {"w": noise, "small": [torch.full((9,), n) for n in range(5)]}
            codec = ("none", "planes", "none", "zstd")[number % 4]
            fastckpt.save(state, path, codec=codec, parity=share, parity_at="inside", durable=False)
            made.append(Good(path.read_bytes(), reference_inside.read(path.read_bytes())))
    return made


def harm(good: Good, rng: random.Random) -> bytes:
    """Damage anywhere, often where much stands: the ends of the file and of the parity, and its pages."""
    raw = bytearray(good.raw)
    for _ in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.6:
            rng.choice(KINDS)(raw, rng, good.inside.groups)
        else:
            place = rng.choice([0, good.inside.covered, good.inside.rows, good.inside.again, len(raw) - 65_536])
            begin = max(place - rng.choice([0, 0, 4096, 3 * LEAF]), 0)
            size = len(raw[begin : begin + rng.choice([10, 4096, LEAF, 65_536])])
            raw[begin : begin + size] = rng.choice([bytes(size), rng.randbytes(size)])
    return bytes(raw)


def run_case(goods: list[Good], seed: int, directory: Path) -> str:
    rng = random.Random(seed)
    good = rng.choice(goods)
    damaged = harm(good, rng)
    path, out = directory / "s.fckpt", directory / "out"
    path.write_bytes(damaged)
    try:
        return _compare(good, damaged, path, out)
    finally:
        for file in directory.iterdir():
            file.unlink()


def _compare(good: Good, damaged: bytes, path: Path, out: Path) -> str:
    inside = good.inside
    if not inside.has_digests(good.raw, damaged):
        # All around the section proves itself: it is made again, if its digest in the footer tells how much it was.
        around = (slice(inside.covered), slice(inside.end, None))
        if all(damaged[part] == good.raw[part] for part in around) and (inside.k, inside.m) in PARITIES.values():
            assert fastckpt.repair(path, out, durable=False, threads=1).state == "healed"
            assert out.read_bytes() == good.raw
            return "made again"
        with pytest.raises((DamagedError, MismatchError)):
            fastckpt.repair(path, out, durable=False)
        assert not out.exists()
        return "no digests"
    lost = inside.lost(good.raw, damaged)
    left = [leaf for leaves, parity in lost.values() for leaf in leaves if len(leaves) + parity > inside.m]
    count = sum(len(leaves) for leaves, _ in lost.values())
    report = fastckpt.repair(path, out, durable=False, threads=1)
    assert (report.lost, report.healed, report.parity_at) == (count, count - len(left), "inside")
    assert path.read_bytes() == damaged
    if damaged == good.raw:
        assert (report.state, out.exists()) == ("as sealed", False)
    elif not left:
        assert (report.state, out.read_bytes() == good.raw) == ("healed", True)
        in_place = fastckpt.repair(path, keep=False, durable=False, threads=1)
        assert (in_place.state, path.read_bytes() == good.raw) == ("healed", True)
    elif not report.healed:
        assert (report.state, out.exists()) == ("not healed", False)
    else:
        assert report.state == "partly healed"
        expected = bytearray(damaged.ljust(inside.covered, b"\0"))
        for leaf in range(inside.leaves):
            begin, end = leaf * LEAF, min((leaf + 1) * LEAF, inside.covered)
            if leaf not in left:
                expected[begin:end] = good.raw[begin:end]
        assert out.read_bytes() == expected
    return report.state


@pytest.mark.parametrize("cases", [CASES or 60, pytest.param(3000, marks=pytest.mark.thorough)])
def test_cases(goods: list[Good], cases: int, tmp_path: Path) -> None:
    became = run_cases(cases, lambda seed: run_case(goods, seed, tmp_path))
    assert {"healed", "partly healed", "not healed", "no digests"} <= became.keys(), became
