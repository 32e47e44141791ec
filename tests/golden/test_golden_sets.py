"""Sets written once are read the same forever, and by a reader that knows only section 25 of ``SPEC.md``."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from describe import Description, describe, digest  # noqa: E402
from golden_sets import SETS  # noqa: E402
from in_turn import Part, Rank, save_in_turn  # noqa: E402
from reference_set import read_set  # noqa: E402
from reference_tree import Refused  # noqa: E402

import fastckpt  # noqa: E402
import fastckpt.dcp  # noqa: E402
from fastckpt.constants import SET_NAME  # noqa: E402
from fastckpt.sets.judge import judge  # noqa: E402
from fastckpt.sets.recognise import recognise  # noqa: E402

GOLDEN = Path(__file__).with_name("sets")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(params=sorted(SETS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def expected(name: str) -> dict[str, Any]:
    """What the JSON beside it states."""
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="ascii"))
    return loaded


def test_there_is_a_set_for_every_state_and_the_other_way_round() -> None:
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == SETS.keys()


def test_every_file_is_unchanged(name: str, expected: dict[str, Any]) -> None:
    files = {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir()}
    assert {file: [len(data), digest(data)] for file, data in files.items()} == expected["files"]


def test_the_state_is_what_was_saved(name: str, expected: dict[str, Any]) -> None:
    for state in (SETS[name].whole(), fastckpt.load(GOLDEN / name), read_set(GOLDEN / name)):
        assert describe(state) == {"tree": expected["tree"], "tensors": expected["tensors"]}


def test_torch_loads_what_was_saved(name: str, expected: dict[str, Any]) -> None:
    def emptied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.zeros_like(value)
        if isinstance(value, dict):
            return {key: emptied(item) for key, item in value.items()}
        return [emptied(item) for item in value] if isinstance(value, list) else None

    state = emptied(SETS[name].whole())
    fastckpt.dcp.load(state, GOLDEN / name, no_dist=True)
    found = Description(state)
    assert found.tree == expected["tree"]
    assert [tensor["values"] for tensor in found.tensors] == [tensor["values"] for tensor in expected["tensors"]]


def test_it_is_whole(name: str) -> None:
    (report,) = [judge(found, threads=1) for found in recognise(str(GOLDEN / name))]
    assert report.is_whole, report.problems
    assert report.is_of_one_save


def test_saving_again_gives_the_same_bytes(name: str, expected: dict[str, Any], tmp_path: Path) -> None:
    save_in_turn(tmp_path / "again", SETS[name].ranks())
    for path in (GOLDEN / name).iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_later_generation_differs_in_names_alone(name: str, expected: dict[str, Any], tmp_path: Path) -> None:
    for _ in range(3):
        save_in_turn(tmp_path / "again", SETS[name].ranks())
    found = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert len(found) == len(expected["files"])
    for path in (GOLDEN / name).glob("shard-*"):
        assert found[path.name.replace("shard-0001", "shard-0003")] == path.read_bytes()
    assert describe(read_set(tmp_path / "again")) == describe(read_set(GOLDEN / name))


def test_the_reference_reader_refuses_what_is_not_the_set(tmp_path: Path) -> None:
    place = tmp_path / "set"
    first, second = "shard-0001-00000.fckpt", "shard-0001-00001.fckpt"
    changes = [
        lambda: (place / second).unlink(),
        lambda: shutil.copyfile(GOLDEN / "fsdp2" / first, place / second),
        lambda: shutil.copyfile(GOLDEN / "plain" / SET_NAME, place / SET_NAME),
        lambda: (place / SET_NAME).unlink(),
    ]
    for change in changes:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(GOLDEN / "fsdp2", place)
        change()
        with pytest.raises((Refused, FileNotFoundError)):
            read_set(place)


@pytest.mark.parametrize("shape", [(), (1,), (4, 3), (2, 0, 3), (3, 4, 5)])
def test_readers_agree(shape: tuple[int, ...], tmp_path: Path) -> None:
    """On tensors that are cut into four along each of their dimensions, into parts of which some are empty."""
    whole = torch.arange(60.0)[: torch.Size(shape).numel()].view(shape)
    for dim, extent in enumerate(shape):
        cuts = [0, min(1, extent), min(3, extent), extent, extent]
        parts = []
        for begin, end in pairwise(cuts):
            offsets = tuple(begin if at == dim else 0 for at in range(len(shape)))
            parts.append(Part(("w",), shape, offsets, whole.narrow(dim, begin, end - begin)))
        save_in_turn(tmp_path / str(dim), [Rank({"ranks": 4}, (part,)) for part in parts])
    if not shape:
        save_in_turn(tmp_path / "scalar", [Rank({"w": whole, "ranks": 1})])
    for place in tmp_path.iterdir():
        loaded = fastckpt.load(place)
        assert describe(read_set(place)) == describe(loaded)
        assert torch.equal(loaded["w"], whole)
