"""Random damage to sealed files and their seals, against an exact oracle.

A leaf comes back if and only if no more leaves of its group are lost, those of parity among them, than there are leaves
of parity. And no byte is ever wrong. Some cases run by default, 5,000 in the long form; ``FASTCKPT_REPAIR_CASES`` says
how many instead.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import reference_reader
from random_damage import KINDS, burst, flips, hole, nothing, run_cases, sectors

import fastckpt
from fastckpt.constants import LEAF_SIZE, SEAL_ROWS
from fastckpt.errors import DamagedError
from fastckpt.seals.parity import PARITIES, Parity

LEAF = LEAF_SIZE
CASES = int(os.environ.get("FASTCKPT_REPAIR_CASES", "0"))
SHARES = {"3%": Parity(64, 2), "10%": Parity(20, 2), "one row": Parity(9, 1), "three rows": Parity(11, 3)}
SIZES = [1, LEAF - 1, LEAF, LEAF + 1, 5 * LEAF, 20 * LEAF, 21 * LEAF + 7, 64 * LEAF, 65 * LEAF - 3, 131 * LEAF + 4000]


class Good(NamedTuple):
    """A sealed file."""

    name: str
    raw: bytes
    sums: bytes
    parity: Parity

    @property
    def leaves(self) -> int:
        return -(-len(self.raw) // LEAF)

    @property
    def groups(self) -> int:
        return -(-self.leaves // self.parity.depth)


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> list[Good]:
    directory = tmp_path_factory.mktemp("goods")
    made = []
    with pytest.MonkeyPatch.context() as patch:
        for share, parity in SHARES.items():
            patch.setitem(PARITIES, share, parity)
        for share, parity in SHARES.items():
            for size in SIZES:
                path = directory / f"{share[:5]}-{size}"
                path.write_bytes(random.Random(size).randbytes(size))
                sums = fastckpt.seal(path, parity=share, durable=False).sums
                made.append(Good(path.name, path.read_bytes(), Path(sums).read_bytes(), parity))
    return made


# --- what is done to it ---------------------------------------------------------


OF_SEALS = [nothing, nothing, flips, burst, hole, sectors]


# --- what must come of it --------------------------------------------------------


def lost_leaves(good: bytes, damaged: bytes) -> set[int]:
    """A leaf is lost if one of its bytes is another one, or is not there."""
    return {
        at // LEAF
        for at in range(0, len(good), LEAF)
        if good[at : at + LEAF] != damaged[at : min(at + LEAF, len(good))]
    }


def known_parity(good: Good, sums: bytes, path: Path) -> tuple[Counter[int], bool]:
    """Leaves of parity of each group that the seal still proves; and whether it proves all digests.

    By where the second reader finds them in the whole seal. Damage is in payloads only: its structure is whole.
    """
    path.write_bytes(good.sums)
    known: Counter[int] = Counter()
    lost: dict[str, set[int]] = {}
    for record in reference_reader.read(path).records:
        payload = slice(record.payload, record.payload + record.stored_size)
        bad = lost_leaves(good.sums[payload], sums[payload])
        names = {entry.storage: entry.name for entry in record.entries}
        for storage, begin, size in record.storages:
            name = names[storage]
            if name in SEAL_ROWS:
                for group in range(size // LEAF):
                    spans = range((begin + group * LEAF) // LEAF, (begin + (group + 1) * LEAF - 1) // LEAF + 1)
                    known[group] += bad.isdisjoint(spans)
            else:
                skip = LEAF if name != "digests" else 0
                lost[name] = {at for at in range(size - skip) if (begin + skip + at) // LEAF in bad}
    return known, lost["digests"].isdisjoint(lost["digests copy"])


def payloads(good: Good, path: Path) -> list[tuple[int, int]]:
    path.write_bytes(good.sums)
    return [(record.payload, record.stored_size) for record in reference_reader.read(path).records]


def run_case(goods: list[Good], seed: int, directory: Path) -> str:
    rng = random.Random(seed)
    good = rng.choice(goods)
    damaged = bytearray(good.raw)
    for _ in range(rng.choice([1, 1, 2])):
        rng.choice(KINDS)(damaged, rng, good.groups)
    sums = bytearray(good.sums)
    hurt = rng.choice(OF_SEALS)
    begin, size = rng.choice(payloads(good, directory / "sums"))
    part = sums[begin : begin + size]
    hurt(part, rng, 1)
    sums[begin : begin + size] = part
    path, out = directory / good.name, directory / "out"
    path.write_bytes(damaged)
    Path(f"{path}.fckpt-sums").write_bytes(sums)
    try:
        return _compare(good, bytes(damaged), bytes(sums), path, out)
    finally:
        for file in directory.iterdir():
            file.unlink()


def _compare(good: Good, damaged: bytes, sums: bytes, path: Path, out: Path) -> str:
    known, has_digests = known_parity(good, sums, path.with_name("sums"))
    if not has_digests:
        with pytest.raises(DamagedError):
            fastckpt.repair(path, out, durable=False)
        assert not out.exists()
        return "no digests"
    lost = lost_leaves(good.raw, damaged)
    in_group = Counter(leaf % good.groups for leaf in lost)
    heals = {leaf for leaf in lost if in_group[leaf % good.groups] <= known[leaf % good.groups]}
    report = fastckpt.repair(path, out, durable=False, threads=1)
    assert (report.lost, report.healed) == (len(lost), len(heals))
    assert path.read_bytes() == damaged
    if not lost and len(damaged) == len(good.raw):
        assert not out.exists()
        assert report.state == ("as sealed" if sums == good.sums else "would heal")
        if report.state == "would heal":
            assert fastckpt.repair(path, durable=False).state == "healed"
            assert fastckpt.verify(f"{path}.fckpt-sums").ok
        return "nothing"
    if lost and not heals:
        assert (report.state, out.exists()) == ("not healed", False)
        return "not healed"
    expected = bytearray(damaged[: len(good.raw)].ljust(len(good.raw), b"\0"))
    for leaf in heals:
        expected[leaf * LEAF : (leaf + 1) * LEAF] = good.raw[leaf * LEAF : (leaf + 1) * LEAF]
    assert out.read_bytes() == expected
    assert (expected == good.raw) == (report.state == "healed")
    assert report.state == ("healed" if heals == lost else "partly healed")
    return report.state


@pytest.mark.parametrize("cases", [CASES or 150, pytest.param(1000, marks=pytest.mark.thorough)])
def test_cases(goods: list[Good], cases: int, tmp_path: Path) -> None:
    became = run_cases(cases, lambda seed: run_case(goods, seed, tmp_path))
    assert {"healed", "partly healed", "not healed", "nothing", "no digests"} <= became.keys(), became
    assert became["healed"] > cases / 4, became
