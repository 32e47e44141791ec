"""Parity inside of a file: the section that is written, as a second reader finds it, and what is refused."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
import reference_inside

torch = pytest.importorskip("torch")

import fastckpt  # noqa: E402
from fastckpt.constants import ALIGNMENT, SECTION_PARITY  # noqa: E402
from fastckpt.errors import DamagedError, UsageError  # noqa: E402
from fastckpt.fckpt.file import CheckpointFile  # noqa: E402
from fastckpt.io import tally  # noqa: E402
from fastckpt.layout.blocks import seal  # noqa: E402
from fastckpt.seals import encoded  # noqa: E402
from fastckpt.seals.parity import PARITIES, Parity  # noqa: E402
from fastckpt.seals.parity_section import ParitySection, decode_page, runs_of_rows  # noqa: E402
from fastckpt.verdicts import Verdict  # noqa: E402

ROOT = bytes(range(16))


def state(size: int) -> dict[str, Any]:
    return {"w": torch.frombuffer(bytearray(random.Random(size).randbytes(size)), dtype=torch.uint8), "step": 3}


@pytest.mark.parametrize("codec", ["none", "planes", "zstd"])
@pytest.mark.parametrize("share", ["3%", "10%"])
@pytest.mark.parametrize("size", [1, 300_000, 3_000_017])
def test_a_second_reader_finds_it(tmp_path: Path, codec: str, share: str, size: int) -> None:
    path = tmp_path / "s.fckpt"
    fastckpt.save(state(size), path, codec=codec, parity=share, parity_at="inside", durable=False)
    found = reference_inside.read(path.read_bytes())
    assert (found.k, found.m) == PARITIES[share]
    report = fastckpt.verify(path)
    assert (report.verdict, report.findings) == (Verdict.INTACT, [])


@pytest.mark.parametrize("parity", [Parity(1, 1), Parity(9, 1), Parity(11, 3), Parity(255, 3)])
def test_other_numbers_of_leaves(tmp_path: Path, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARITIES, "3%", parity)
    fastckpt.save(state(1_234_567), tmp_path / "s.fckpt", parity="3%", parity_at="inside", durable=False)
    found = reference_inside.read((tmp_path / "s.fckpt").read_bytes())
    assert (found.k, found.m) == parity


def test_the_bytes_depend_on_the_state_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durable or not, in the background, through a file object; summed up in memory, or read again bit by bit."""
    value, sink = state(3_000_000), io.BytesIO()
    how: dict[str, Any] = {"parity": "10%", "parity_at": "inside"}
    fastckpt.save(value, tmp_path / "a.fckpt", **how)
    fastckpt.save_async(value, tmp_path / "b.fckpt", durable=False, threads=1, **how).result()
    fastckpt.save(value, sink, **how)
    monkeypatch.setattr(tally, "MOST", 0)
    fastckpt.save(value, tmp_path / "c.fckpt", durable=False, **how)
    monkeypatch.setattr(encoded, "_IN_MEMORY", 100_000)
    fastckpt.save(value, tmp_path / "d.fckpt", durable=False, **how)
    first = (tmp_path / "a.fckpt").read_bytes()
    assert all((tmp_path / f"{name}.fckpt").read_bytes() == first for name in "bcd")
    assert sink.getvalue() == first
    fastckpt.save(value, tmp_path / "plain.fckpt", durable=False)
    assert fastckpt.open(tmp_path / "plain.fckpt").root == fastckpt.open(tmp_path / "a.fckpt").root


def test_what_there_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="beside a file or inside"):
        fastckpt.save(state(1), tmp_path / "s.fckpt", parity="3%", parity_at="behind")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no place beside it"):
        fastckpt.save(state(1), io.BytesIO(), parity="3%")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("covered", "parity", "number", "more"),
    [
        (8192, Parity(0, 2), 0, b""),
        (8192, Parity(64, 4), 0, b""),
        (8193, Parity(64, 2), 0, b""),
        (0, Parity(64, 2), 0, b""),
        (8192, Parity(64, 2), 1, b""),
        (8192, Parity(64, 2), 0, bytes(100) + b"x"),
    ],
)
def test_pages_that_cannot_be(covered: int, parity: Parity, number: int, more: bytes) -> None:
    good = ParitySection(8192, Parity(64, 2), ROOT).encode_pages(bytes(24))
    assert decode_page(good).section == ParitySection(8192, Parity(64, 2), ROOT)
    head = covered.to_bytes(8, "little") + number.to_bytes(8, "little") + bytes([*parity]) + bytes(6) + ROOT
    assert seal(b"FCKPTPDG", head, bytes(24)) != good or (covered, parity, number) == (8192, (64, 2), 0)
    with pytest.raises(DamagedError):
        decode_page(seal(b"FCKPTPDG", head, bytes(24), more))


def test_a_section_of_another_file_is_found(tmp_path: Path) -> None:
    """Its digest is right, and the footer names it: what its pages say is not so."""
    for name, value in (("a", 1), ("b", 2)):
        fastckpt.save({"w": torch.full((9,), value)}, tmp_path / f"{name}.fckpt", parity="3%", parity_at="inside")
    with CheckpointFile(tmp_path / "a.fckpt") as file:
        section = file.required_section(SECTION_PARITY)
    a, b = ((tmp_path / f"{name}.fckpt").read_bytes() for name in "ab")
    begin, end = section.extent.offset, section.extent.end
    footer = a[-ALIGNMENT:-16].replace(section.digest, b[end - 16 : end])
    mixed = a[:begin] + b[begin:end] + a[end:-ALIGNMENT] + seal(footer[:8], footer[16:].rstrip(b"\0"))
    (tmp_path / "a.fckpt").write_bytes(mixed)
    report = fastckpt.verify(tmp_path / "a.fckpt")
    assert (report.exit_code, [finding.message for finding in report.findings]) == (
        1,
        ["the parity is not of this file"],
    )
    assert torch.equal(fastckpt.load(tmp_path / "a.fckpt")["w"], torch.full((9,), 1))


@pytest.mark.parametrize(("groups", "leaves", "at_most"), [(1, 5, 3), (3, 8, 1), (4, 8, 3), (7, 40, 512)])
def test_rows_go_on_where_the_leaves_end(groups: int, leaves: int, at_most: int) -> None:
    section = ParitySection(leaves * 16384, Parity(-(-leaves // groups), 2), ROOT)
    assert section.groups == groups
    stand = [(row, group + n) for row, group, count in runs_of_rows(section, at_most) for n in range(count)]
    assert stand == [(row, (leaves + place) % groups) for row in range(2) for place in range(groups)]
    assert [section.position(group) for _, group in stand] == [*range(groups)] * 2
