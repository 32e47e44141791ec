"""Any ranks to any ranks, however the tensors are spread: bit for bit what they are as a whole, nothing unpickled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_group import RankGroup

import fastckpt
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise

GroupOf = Callable[[int], RankGroup]
WORLDS = (1, 2, 4)
KINDS = ("plain", "fsdp", "tp", "hsdp")
QUICK = [("fsdp", "sync", 2, ("fsdp",), (1, 2)), ("tp", "thread", 2, ("tp",), (2,))]
FULL = [
    *((kind, how, saved, (kind,), WORLDS) for how in ("sync", "thread") for kind in KINDS for saved in WORLDS),
    # Spread in another way when it is loaded.
    ("tp", "sync", 4, KINDS, (2, 4)),
    ("hsdp", "thread", 4, KINDS, (2,)),
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.thorough) for case in FULL)]


def ok(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the ranks say, if nothing is wrong."""
    for answer in answers:
        assert not answer["unpickled"]
        assert not answer.get("differences")
    return answers


def check(
    group_of: GroupOf, place: str, kind: str, how: str, saved: int, kinds: tuple[str, ...], worlds: tuple[int, ...]
) -> None:
    """Save on so many ranks, load on others."""
    spread = ok(group_of(saved).run("save", kind=kind, how=how, place=place))
    # What is claimed of the ways to spread a tensor was there.
    assert any(rank["strided"] for rank in spread) == (kind == "tp" and saved > 1)
    assert any(rank["empty"] for rank in spread) == (saved > 1)
    (report,) = [judge(found, threads=1) for found in recognise(place)]
    assert report.is_whole, report.problems
    assert report.is_of_one_save
    for other in kinds:
        for world in worlds:
            ok(group_of(world).run("load", kind=other, place=place))
    # Without torch.distributed, put together: the same again.
    state, truth = fastckpt.load(place), torch.load(f"{place}.truth", weights_only=False)
    for part in ("model", "rows", "whole"):
        assert list(state[part]) == list(truth[part])
        for name, tensor in truth[part].items():
            assert state[part][name].dtype == tensor.dtype
            assert torch.equal(bits(state[part][name]), bits(tensor)), name
    assert {name: state[name] for name in ("config", "step", "seen")} == {
        name: truth[name] for name in ("config", "step", "seen")
    }
    model = {name: torch.zeros_like(tensor) for name, tensor in truth["model"].items()}
    fastckpt.load_into(model, place, prefix="model")
    assert all(torch.equal(model[name], tensor) for name, tensor in truth["model"].items())


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "how", "saved", "kinds", "worlds"), CASES)
def test_any_ranks_to_any_ranks(
    group_of: GroupOf, kind: str, how: str, saved: int, kinds: tuple[str, ...], worlds: tuple[int, ...], tmp_path: Path
) -> None:
    check(group_of, str(tmp_path / "step-7"), kind, how, saved, kinds, worlds)


@pytest.mark.parametrize(
    "saved",
    [pytest.param(2, marks=pytest.mark.thorough), *(pytest.param(saved, marks=pytest.mark.slow) for saved in (1, 4))],
)
def test_saved_by_processes_of_their_own(group_of: GroupOf, saved: int, tmp_path: Path) -> None:
    """All kinds in one test: these processes take seconds to start, and stay."""
    for kind in KINDS:
        check(group_of, str(tmp_path / kind), kind, "process", saved, (kind,), WORLDS)
    assert not group_of(saved).strange_pickles.exists()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def test_the_same_state_gives_the_same_bytes(group_of: GroupOf, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ok(group_of(2).run("save", kind="fsdp", how="thread" if name == "b" else "sync", place=str(tmp_path / name)))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["set.fckpt", "shard-0001-00000.fckpt", "shard-0001-00001.fckpt"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
