"""A set without its ``set.fckpt``: by what its shards say every part comes back, and nothing is called proven."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from in_turn import Part, Rank, rows_of, save_in_turn

import fastckpt
from fastckpt.cli.main import main
from fastckpt.salvaging.report import SalvageReport

FIRST, SECOND = "shard-0001-00000.fckpt", "shard-0001-00001.fckpt"
WHOLE = {
    "w": torch.arange(60_000.0).view(6, 10_000),
    "b": torch.arange(5, dtype=torch.int16),
    "square": torch.arange(24.0).view(4, 6),
    "scalar": torch.tensor(3.5),
}


def ranks(change: float = 0) -> list[Rank]:
    """Four: rows of two tensors, quarters of a third, and what only the first one has."""
    rows = zip(*(rows_of(("model", name), WHOLE[name] + change, 4) for name in ("w", "b")), strict=True)
    square = WHOLE["square"] + change
    quarters = [Part(("square",), (4, 6), (a, b), square[a : a + 2, b : b + 3]) for a in (0, 2) for b in (0, 3)]
    states: list[dict[str, Any]] = [{"scalar": WHOLE["scalar"], "step": 7}, {}, {}, {}]
    return [Rank(state, (*row, quarter)) for state, row, quarter in zip(states, rows, quarters, strict=True)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_in_turn(tmp_path / "set", ranks(), options={"durable": False})
    shutil.copytree(tmp_path / "set", tmp_path / "other")
    (tmp_path / "set" / "set.fckpt").unlink()
    return tmp_path / "set"


def salvage(place: Path, include: list[str], **options: Any) -> SalvageReport:
    return fastckpt.salvage(place, place.with_name("left.fckpt"), include=include, durable=False, **options)


@pytest.mark.parametrize("lost", ["missing", "cut", "flipped"])
def test_every_part_comes_back(place: Path, lost: str) -> None:
    if lost != "missing":
        content = bytearray((place.with_name("other") / "set.fckpt").read_bytes())
        if lost == "flipped":
            content[4096:24_000:512] = bytes(byte ^ 1 for byte in content[4096:24_000:512])
        (place / "set.fckpt").write_bytes(content if lost == "flipped" else content[:5000])
    report = salvage(place, ["unverified"])
    assert (report.structure, report.exit_code, report.complete) == ("from shards", 1, False)
    assert {fate.status.value for fate in report.tensors.values()} == {"unverified"}
    left = fastckpt.load(place.with_name("left.fckpt"))
    assert left.pop("step") == 7
    assert left.keys() == {"model.w", "model.b", "square", "scalar"}
    assert all(torch.equal(tensor, WHOLE[name.removeprefix("model.")]) for name, tensor in left.items())


def test_nothing_is_taken_in_by_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["salvage", str(place), "-o", str(place.with_name("left.fckpt"))]) == 2
    text = capsys.readouterr().out
    assert "from the shards" in text
    assert "tensors that are known" in text
    assert "--include unverified" in text


def test_another_set_of_the_run_says_how_it_is_nested(place: Path) -> None:
    salvage(place, ["unverified"], like=place.with_name("other"))
    left = fastckpt.load(place.with_name("left.fckpt"))
    assert torch.equal(left["model"]["w"], WHOLE["w"])


def test_of_a_shard_that_is_gone_too_the_parts_are_named(place: Path) -> None:
    (place / SECOND).unlink()
    report = salvage(place, ["damaged", "unverified"])
    assert not report.complete
    assert (report.tensors["model.w"].status.value, report.tensors["square"].status.value) == ("damaged", "damaged")
    assert "[2:4,0:10000] of it is lost" in report.tensors["model.w"].reason
    assert "[0:2,3:6] of it is lost" in report.tensors["square"].reason
    left = fastckpt.load(place.with_name("left.fckpt"))
    assert torch.equal(left["model.w"][[0, 1, 4, 5]], WHOLE["w"][[0, 1, 4, 5]])
    assert torch.equal(left["square"][2:], WHOLE["square"][2:])
    assert torch.equal(left["square"][:2, :3], WHOLE["square"][:2, :3])


@pytest.mark.parametrize("how", ["cut", "no checkpoint", "no shard"])
def test_a_shard_that_says_nothing_is_named(place: Path, how: str) -> None:
    if how == "cut":
        os.truncate(place / SECOND, 20_000)
    elif how == "no checkpoint":
        (place / SECOND).write_bytes(b"x" * 9000)
    else:
        fastckpt.save({"w": torch.ones(3)}, place / SECOND)
    report = salvage(place, ["damaged", "unverified"])
    assert any(SECOND in finding.message and finding.loss for finding in report.findings)
    assert report.tensors["model.w"].status.value == "damaged"
    assert not report.complete
    left = fastckpt.load(place.with_name("left.fckpt"))
    assert torch.equal(left["model.w"][[0, 1, 4, 5]], WHOLE["w"][[0, 1, 4, 5]])


@pytest.mark.parametrize(
    "said",
    [
        ["model.w", (0, 0), (9, 10_000)],
        ["w", (0, 0), (6, 10_000)],
        ["model.w", (0, 0)],
        ["model.w", (0,), (6, 10_000)],
        7,
    ],
)
def test_a_shard_that_says_what_cannot_be(place: Path, said: Any) -> None:
    state = fastckpt.load(place / SECOND)
    with fastckpt.open(place / SECOND) as opened:
        metadata = opened.metadata
    metadata["dcp"]["tensors"]["model.w[2:4,0:10000]"] = said
    fastckpt.save(state, place / SECOND, metadata=metadata)
    report = salvage(place, ["damaged", "unverified"])
    assert not report.complete
    assert report.tensors["model.w"].status.value == "damaged"


def test_the_newest_save_that_ended_is_taken(place: Path) -> None:
    """Two saves are there, as a crash leaves them: of the later one a shard is missing."""
    later = place.with_name("later")
    for _ in range(2):
        save_in_turn(later, ranks(100), options={"durable": False})
    shutil.copyfile(later / FIRST.replace("0001", "0002"), place / FIRST.replace("0001", "0002"))
    salvage(place, ["unverified"])
    assert torch.equal(fastckpt.load(place.with_name("left.fckpt"))["model.w"], WHOLE["w"])
    for path in later.glob("shard-0002-*"):
        shutil.copyfile(path, place / path.name)
    place.with_name("left.fckpt").unlink()
    salvage(place, ["unverified"])
    assert torch.equal(fastckpt.load(place.with_name("left.fckpt"))["model.w"], WHOLE["w"] + 100)


def test_without_any_shard_that_speaks(place: Path) -> None:
    for path in place.iterdir():
        path.write_bytes(b"x" * 9000)
    with pytest.raises(fastckpt.errors.FastckptError, match="--like"):
        salvage(place, ["unverified"])
