"""The damage lab itself: what its oracle wants and forbids, and that it notices what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest
from goods import Good, good_files
from makers import KINDS
from oracle import INTACT, UNVERIFIED, Oracle
from trials import Tally, scratch


@pytest.fixture
def goods() -> Iterator[dict[str, Good]]:
    """The good files, and a place to work."""
    with scratch():
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
        tally = Tally()
        for seed in range(12):
            lab.TRIALS.try_case("preallocated-tail", seed, tmp_path, tally)
        assert tally.count(what) >= 6
        assert tally.failures[0]["case"].startswith("preallocated-tail:")
