"""A shard that is missing, cut, flipped, swapped or stale is named with its tensors and what of them it has; loads that
do not touch the damage go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_turn import Rank, rows_of, save_in_turn
from torch.distributed.checkpoint.api import CheckpointException

import fastckpt
import fastckpt.dcp
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
FIRST, SECOND = "shard-0002-00000.fckpt", "shard-0002-00001.fckpt"
PART = "model.w[3:6,0:40000]"
"""What the second rank has of a tensor. `FIRST` has the rest, `norm` and `step`; `SECOND` has `embed`."""


def state(number: int) -> dict[str, Any]:
    model = {"w": torch.arange(240_000.0).view(6, 40_000) + number, "b": torch.arange(5, dtype=torch.int16) + number}
    return {
        "norm": torch.full((7,), float(number)),
        "embed": torch.full((9, 9), number),
        "step": number,
        "model": model,
    }


def save(place: Path, number: int) -> None:
    whole = state(number)
    parts = list(zip(*(rows_of(("model", name), tensor, 2) for name, tensor in whole["model"].items()), strict=True))
    first, second = {"norm": whole["norm"], "step": number}, {"embed": whole["embed"]}
    save_in_turn(place, [Rank(first, parts[0]), Rank(second, parts[1])], options={"durable": False})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A set, and beside it the one that was there before."""
    save(tmp_path / "set", 1)
    shutil.copytree(tmp_path / "set", tmp_path / "before")
    save(tmp_path / "set", 2)
    return tmp_path / "set"


def flip(place: Path) -> None:
    """One bit in the last row of the part."""
    content = bytearray((place / SECOND).read_bytes())
    content[content.index(state(2)["model"]["w"][5].numpy().tobytes()) + 20_000] ^= 1
    (place / SECOND).write_bytes(content)


def swap(place: Path) -> None:
    os.rename(place / FIRST, place / "x")
    os.rename(place / SECOND, place / FIRST)
    os.rename(place / "x", place / SECOND)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda place: (place / SECOND).unlink(),
    "cut": lambda place: os.truncate(place / SECOND, (place / SECOND).stat().st_size // 2),
    "empty": lambda place: os.truncate(place / SECOND, 0),
    "flipped": flip,
    "swapped": swap,
    "stale": lambda place: shutil.copyfile(place.parent / "before" / SECOND.replace("0002", "0001"), place / SECOND),
    "no checkpoint": lambda place: (place / SECOND).write_bytes(b"x" * 10_000),
}


def emptied(number: int) -> dict[str, Any]:
    whole = state(number)
    model = {name: torch.zeros_like(tensor) for name, tensor in whole["model"].items()}
    return {**{name: torch.zeros_like(whole[name]) for name in ("norm", "embed")}, "step": None, "model": model}


def by_torch(place: Path, wanted: dict[str, Any]) -> None:
    """Load as `torch.distributed.checkpoint` does it; raise what went wrong in the one rank."""
    try:
        fastckpt.dcp.load(wanted, place, no_dist=True)
    except CheckpointException as error:
        raise error.failures[0][0] from None


LOADS: dict[str, Callable[[Path], object]] = {
    "dcp.load": lambda place: by_torch(place, emptied(2)),
    "load": fastckpt.load,
    "load keys": lambda place: fastckpt.load(place, keys="model.*"),
    "load_into": lambda place: fastckpt.load_into(emptied(2), place),
}


@pytest.fixture(params=DAMAGE)
def damage(request: pytest.FixtureRequest, place: Path) -> str:
    DAMAGE[request.param](place)
    return str(request.param)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("load", LOADS)
def test_loads_name_it(place: Path, damage: str, load: str) -> None:
    with pytest.raises(DamagedError) as caught:
        LOADS[load](place)
    text = str(caught.value)
    # Of two that changed places the one that is read first is named.
    assert SECOND in text or (damage == "swapped" and FIRST in text)
    assert (PART if SECOND in text else "model.w[0:3,0:40000]") in text


def test_verify_names_it(place: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(place)]) == 2
    text = capsys.readouterr().out
    assert SECOND in text
    assert main(["verify", str(place), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    found = [
        *document["sets"][0]["problems"],
        *(each for file in document["sets"][0]["files"] for each in file["findings"]),
    ]
    named = {name for each in found for name in each["tensors"]}
    assert f"tensors.{PART}" in named
    if damage == "flipped":
        assert named == {f"tensors.{PART}"}
    if damage in ("swapped", "stale"):
        assert ("it is shard 1 of 2 of this set" if damage == "swapped" else "it is of another save") in text
    assert PART in text


def test_salvage_names_it_and_keeps_the_rest(place: Path, damage: str, tmp_path: Path) -> None:
    report = fastckpt.salvage(place, tmp_path / "left.fckpt", include=["partial"], durable=False)
    fate = report.tensors["model.w"]
    if damage == "swapped":
        # Both are there, under each other's name.
        assert (report.exit_code, report.complete, fate.status.value) == (1, True, "intact")
        assert any(SECOND in finding.message and FIRST in finding.message for finding in report.findings)
        assert torch.equal(fastckpt.load(tmp_path / "left.fckpt")["model"]["w"], state(2)["model"]["w"])
        return
    assert not report.complete
    assert report.exit_code == 3
    assert (fate.status.value, fate.rows_intact) == ("partial", [(0, 3)])
    assert "[3:6,0:40000]" in fate.reason
    assert SECOND in fate.reason
    left = fastckpt.load(tmp_path / "left.fckpt")
    assert torch.equal(left["model"]["w"][:3], state(2)["model"]["w"][:3])
    assert torch.equal(left["norm"], state(2)["norm"])
    assert left["step"] == 2
    if damage == "flipped":
        assert torch.equal(left["model"]["b"], state(2)["model"]["b"])
        assert torch.equal(left["embed"], state(2)["embed"])


def test_loads_that_do_not_touch_it_go_on(place: Path, damage: str) -> None:
    names = {"flipped": ["norm", "embed"], "swapped": []}.get(damage, ["norm"])
    for name in names:
        wanted = {name: torch.zeros_like(state(2)[name])}
        by_torch(place, wanted)
        assert torch.equal(wanted[name], state(2)[name])
        assert torch.equal(fastckpt.load(place, keys=name)[name], state(2)[name])
        into = {name: torch.zeros_like(state(2)[name])}
        fastckpt.load_into(into, place, strict=False)
        assert torch.equal(into[name], state(2)[name])


def test_old_shards_that_a_cut_save_left_are_nobodys(place: Path) -> None:
    for name in (FIRST, SECOND):
        old = name.replace("0002", "0001")
        shutil.copyfile(place.parent / "before" / old, place / old)
    assert main(["verify", str(place)]) == 0
    loaded = fastckpt.load(place)
    assert torch.equal(loaded["model"]["w"], state(2)["model"]["w"])
