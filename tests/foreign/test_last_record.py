"""torch's last record is made of all others: where it was made of other ones, nothing proves that all is of one save.

It never accuses. A program that writes a record anew leaves the last one as it was, and that is no damage.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zip_surgery import content_of, pack_again, put_content, swap_contents, swap_names

import fastckpt
from fastckpt.findings import Kind
from fastckpt.foreign.serialization_id import first_of, hash_of_crcs
from fastckpt.verdicts import Verdict

SHAPE = (20, 30)


def state(seed: int = 0, count: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"h.{n}.w": torch.randn(SHAPE, generator=generator) for n in range(count)} | {"run": torch.arange(5.0)}


def saved(path: Path, seed: int = 0, count: int = 6) -> bytearray:
    torch.save(state(seed, count), path)
    return bytearray(path.read_bytes())


def values(seed: int, name: str) -> bytes:
    return state(seed)[name].numpy().tobytes()


def names_swapped(raw: bytearray) -> None:
    swap_names(raw, "data/1", "data/3")


def storages_swapped(raw: bytearray) -> None:
    swap_contents(raw, "data/1", "data/3")


def one_of_another_save(raw: bytearray) -> None:
    put_content(raw, "data/2", values(1, "h.2.w"))


def many_of_another_save(raw: bytearray) -> None:
    for n in range(3):
        put_content(raw, f"data/{n}", values(1, f"h.{n}.w"))


def pickle_and_storage(raw: bytearray) -> None:
    pickle_changed(raw)
    one_of_another_save(raw)


def pickle_changed(raw: bytearray) -> None:
    put_content(raw, "data.pkl", content_of(raw, "data.pkl").replace(b"run", b"xxx"))


OTHERS = [names_swapped, storages_swapped, one_of_another_save, many_of_another_save, pickle_and_storage]


@pytest.mark.parametrize("change", OTHERS)
@pytest.mark.parametrize("packed_again", [False, True])
def test_other_records_are_said_and_accused_of_nothing(
    tmp_path: Path, change: Callable[[bytearray], None], packed_again: bool
) -> None:
    raw = saved(tmp_path / "a.pt")
    change(raw)
    (tmp_path / "a.pt").write_bytes(pack_again(bytes(raw)) if packed_again else raw)
    report = fastckpt.verify(tmp_path / "a.pt")
    assert (report.ok, report.exit_code, report.verdict) == (True, 0, Verdict.PRESENT)
    (finding,) = report.findings
    assert (finding.kind, finding.loss) == (Kind.UNPROVEN, False)
    assert "one save" in finding.message
    rescued = fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.pt")
    assert (rescued.exit_code, rescued.complete, rescued.findings) == (0, False, [finding])
    assert rescued.counts["intact"] == 7
    before, after = fastckpt.load(tmp_path / "a.pt"), torch.load(tmp_path / "b.pt")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("change", [pickle_changed, None])
def test_what_an_honest_program_makes_of_it(
    tmp_path: Path, change: Callable[[bytearray], None] | None, backwards: bool
) -> None:
    """Another data.pkl, of the same storages; the same records in another order. In place, or as zip packs them."""
    raw = saved(tmp_path / "a.pt")
    if change is not None:
        change(raw)
    for packed in (bytes(raw), pack_again(bytes(raw), backwards=backwards)):
        (tmp_path / "a.pt").write_bytes(packed)
        assert fastckpt.verify(tmp_path / "a.pt").verdict is Verdict.INTACT
        report = fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.pt")
        assert (report.exit_code, report.complete, report.findings) == (0, True, [])


def test_of_several_archives_the_one_that_was_changed(tmp_path: Path) -> None:
    whole, other = bytes(saved(tmp_path / "a.pt")), saved(tmp_path / "a.pt")
    storages_swapped(other)
    (tmp_path / "a.pt").write_bytes(whole + other + whole)
    (finding,) = fastckpt.verify(tmp_path / "a.pt").findings
    assert finding.offset == len(whole)
    report = fastckpt.salvage(tmp_path / "a.pt")
    assert [found.offset for found in report.findings] == [len(whole)]
    assert not report.complete


def test_a_row_of_the_directory_that_rotted_is_no_other_record(tmp_path: Path) -> None:
    """Damage is told as damage, by both: the last record is asked what it was made of only where all else agrees."""
    raw = saved(tmp_path / "a.pt")
    at = raw.rindex(b"a/version") - 30
    raw[at] ^= 1
    (tmp_path / "a.pt").write_bytes(raw)
    assert [finding.kind for finding in fastckpt.verify(tmp_path / "a.pt").findings][:1] != [Kind.UNPROVEN]
    assert fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.pt").complete


@pytest.mark.thorough
@pytest.mark.parametrize(("count", "verdict"), [(12, Verdict.INTACT), (120, Verdict.INTACT), (1200, Verdict.PRESENT)])
def test_another_pickle_of_many_storages(tmp_path: Path, count: int, verdict: Verdict) -> None:
    """That it is data.pkl alone can be told of some hundred records; of more it is said that it is not known."""
    torch.save({str(n): torch.ones(1) * n for n in range(count)} | {"run": 1}, tmp_path / "a.pt")
    raw = bytearray((tmp_path / "a.pt").read_bytes())
    pickle_changed(raw)
    (tmp_path / "a.pt").write_bytes(raw)
    assert fastckpt.verify(tmp_path / "a.pt").verdict is verdict


def test_digits_by_other_rules_are_not_asked(tmp_path: Path) -> None:
    """The first 20 are made of the names by the C++ library that torch was built with."""
    raw = saved(tmp_path / "a.pt")
    put_content(raw, ".data/serialization_id", b"7" * 20 + content_of(raw, ".data/serialization_id")[20:])
    one_of_another_save(raw)
    (tmp_path / "a.pt").write_bytes(raw)
    assert fastckpt.verify(tmp_path / "a.pt").verdict is Verdict.INTACT


def test_the_first_of_a_chain_of_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 7, 30):
        crcs: list[int] = torch.randint(0, 2**32, (count,), generator=generator).tolist()
        digits = hash_of_crcs(crcs)
        assert first_of(digits, crcs[1:], work=1000) == crcs[0]
        if count > 2:
            assert all(first_of(digits, others, work=1000) is None for others in itertools.islice(_wrong(crcs[1:]), 5))


def _wrong(crcs: list[int]) -> itertools.chain[list[int]]:
    return itertools.chain([crcs[::-1], crcs[1:], [crcs[0] ^ 1, *crcs[1:]], [*crcs, 5]])
