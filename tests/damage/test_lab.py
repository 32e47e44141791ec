"""The damage lab, in the size that fits into every run, and the one for the night.

``pytest tests/damage/test_lab.py`` runs 2,000 cases; ``FASTCKPT_LAB_CASES`` (15,000 in .ci/run) and
``FASTCKPT_LAB_SEED`` choose others. The nightly size is ``pytest tests/damage/test_lab.py -m nightly``, or
``python tests/damage/lab.py --nightly`` for the table as JSON.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest
from goods import Good, good_files
from makers import KINDS
from oracle import INTACT, UNVERIFIED, Oracle

CASES = int(os.environ.get("FASTCKPT_LAB_CASES", "2000"))
PARTS = 3
"""Tests that one run of the lab is divided into, so that they run beside each other and beside other suites."""
SEED = int(os.environ.get("FASTCKPT_LAB_SEED", "1"))


def check(tally: lab.Tally, count: int) -> None:
    """Nothing wrong, and all of it was done."""
    print(tally.summary())
    shown = "\n\n".join(
        f"{failed['what']}: python tests/damage/lab.py --replay {failed['case']}  ({failed['good']})\n{failed['text']}"
        for failed in tally.failures[:10]
    )
    assert not tally.failures, f"{len(tally.failures)} cases failed\n{shown}"
    assert sum(tally.cases.values()) == count


@pytest.mark.parametrize("part", range(PARTS))
def test_damage(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of damage, on every good file."""
    count = CASES // PARTS
    tally = lab.run(count, SEED + part * count, workers=1 if "PYTEST_XDIST_WORKER" in os.environ else None)
    with capsys.disabled():
        print()
        check(tally, count)
    if count >= 500:
        assert set(tally.goods) == set(good_files_in_scratch())
        # The lab itself: most files lose something, and most tensors come back.
        assert tally.required > count
        assert tally.refused < count / 20


@pytest.mark.parametrize(
    "case",
    [
        "structure-destroyed:1000009378",  # one bit of a header's name, and all else that tells its place
        "structure-destroyed:700001779",  # a header of .safetensors that is JSON, and no table
        "bytes-removed:1000045714",  # two storages reach over one another: one has its header, one its descriptor
        "twice:1000084440",  # behind a record that its CRC-32 proves, header gone, and the file ends there
        "bytes-removed:1000216524",  # a descriptor ties the end of a storage, and another one stands at its beginning
        "twice:50088340",  # moved and changed, without a CRC-32: nothing can tell
    ],
)
def test_cases_that_once_went_wrong(case: str, goods: dict[str, Good], tmp_path: Path) -> None:
    kind, _, seed = case.partition(":")
    tally = lab.Tally()
    lab.try_case(kind, int(seed), tmp_path, tally)
    check(tally, 1)


@pytest.mark.nightly
def test_damage_nightly(capsys: pytest.CaptureFixture[str]) -> None:
    """A million cases, with seeds of their own."""
    tally = lab.run(lab.NIGHTLY, SEED + 10**9, say=True)
    with capsys.disabled():
        check(tally, lab.NIGHTLY)


def good_files_in_scratch() -> dict[str, Good]:
    """The good files; they are made once."""
    with lab.scratch():
        return good_files()


@pytest.fixture
def goods() -> Iterator[dict[str, Good]]:
    """The good files, and a place to work."""
    with lab.scratch():
        yield good_files()


def test_the_oracle_wants_everything_of_an_undamaged_file(goods: dict[str, Good]) -> None:
    for good in goods.values():
        expected = Oracle(good, good.raw).expect()
        assert expected.structure
        assert not expected.may_refuse
        best = {INTACT} if good.crcs and good.format in ("pt", "fckpt") else {UNVERIFIED}
        for name, verdict in expected.verdicts.items():
            empty = not good.tensors[name].values
            assert verdict.allowed == ({INTACT, UNVERIFIED} if empty else best), (good.name, name)


def test_the_oracle_forbids_a_tensor_whose_byte_changed(goods: dict[str, Good]) -> None:
    r = random.Random(1)
    for good in goods.values():
        if good.format == "fckpt":
            continue
        for name, facts in good.tensors.items():
            if not facts.values:
                continue
            start = good.storages[facts.storage][0] + facts.span[0]
            at = start if not facts.plain else start + r.randrange(len(facts.values))
            damaged = bytearray(good.raw)
            damaged[at] ^= 1
            assert INTACT not in Oracle(good, bytes(damaged)).expect().verdicts[name].allowed


def test_every_byte_of_a_good_file_is_on_its_map(goods: dict[str, Good]) -> None:
    for good in goods.values():
        places = [*good.regions.values()]
        if good.format == "fckpt":
            places += [(record.payload.offset, record.end) for record in good.records]
        else:
            places += list(good.storages.values())
        at = 0
        for start, end in sorted(places):
            assert start == at, (good.name, start, at)
            at = end
        assert at == len(good.raw)


def test_a_case_is_its_kind_and_its_seed(goods: dict[str, Good]) -> None:
    for kind in KINDS:
        first, second = lab.Case.make(kind, 5), lab.Case.make(kind, 5)
        assert first.damaged == second.damaged
        assert (first.good.name, first.destination, first.include) == (
            second.good.name,
            second.destination,
            second.include,
        )


def test_the_lab_notices_what_is_wrong(goods: dict[str, Good], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A salvage that calls a changed tensor intact, or loses one, is found out."""
    import fastckpt

    real = fastckpt.salvage

    def all_intact(source: Path, destination: Path | None = None, **options: object) -> object:
        report = real(source, destination, **options)  # type: ignore[arg-type]
        for fate in report.tensors.values():
            fate.status = type(fate.status)(INTACT)
        return report

    def crash(*_: object, **__: object) -> object:
        raise KeyError("x")

    for change, what in ((all_intact, "wrong"), (crash, "untyped")):
        monkeypatch.setattr(fastckpt, "salvage", change, raising=False)
        tally = lab.Tally()
        for seed in range(12):
            lab.try_case("preallocated-tail", seed, tmp_path, tally)
        assert tally.count(what) >= 6
        assert tally.failures[0]["case"].startswith("preallocated-tail:")
