"""A power cut at any call of two ranks that save a set leaves the old set or the new one, whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_lab import Action, Call, Host, read_calls
from disk import Tree, read_tree, trees_after_cut, write_tree
from set_states import step_of, version_of

import fastckpt
from fastckpt.cli.main import main

HERE = Path(__file__).parent
PHASE = "phase"


@pytest.fixture(scope="module")
def host(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    root = tmp_path_factory.mktemp("sets").resolve() / "root"
    write_tree(root, {})
    (root / PHASE).touch()
    with Host(HERE / "save_set.py", root, shim) as running:
        yield running, root


def step_there(place: Path) -> int:
    """Of which save the set is; 0 if none has ended."""
    if not (place / "set.fckpt").exists():
        return 0
    assert main(["verify", str(place)]) == 0, "the set is not whole"
    return step_of(fastckpt.load(place))


def calls_of_save(host: tuple[Host, Path], place: Path, way: str, step: int) -> list[Call]:
    running, root = host
    log = root.with_name("calls")
    outcome = running.run(place, version_of(way, step), action=Action.LOG, log=log)
    assert outcome.how == "saved", outcome
    return read_calls(log)


def interleaved(calls: list[Call], root: Path, seed: int | None) -> list[Call]:
    """The calls of a save with what the two ranks write in any order; None leaves it in turn."""
    phases: list[list[Call]] = [[]]
    for call in calls:
        if call.path != str(root / PHASE):
            phases[-1].append(call)
        elif call.name == "open":
            phases.append([])
    before, *ranks, after = phases
    assert len(ranks) == 2
    assert min(map(len, ranks)) > 15
    choose = random.Random(seed)
    order = [0] * len(ranks[0]) + [1] * len(ranks[1])
    if seed is not None:
        choose.shuffle(order)
    rest = [iter(rank) for rank in ranks]
    return [*before, *(next(rest[rank]) for rank in order), *after]


def found_after_cuts(calls: list[Call], root: Path, name: str, before: Tree, places: Path) -> Iterator[tuple[str, int]]:
    places.mkdir()
    for number, (where, tree) in enumerate(trees_after_cut(calls, root, before)):
        place = places / str(number)
        write_tree(place, tree)
        try:
            yield where, step_there(place / name)
        except (AssertionError, fastckpt.errors.FastckptError) as error:
            raise AssertionError(f"{where}: {sorted(tree)}") from error


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", [None, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
@pytest.mark.parametrize("over", [True, False], ids=["over an old set", "into no directory"])
def test_power_cut(host: tuple[Host, Path], over: bool, seed: int | None, tmp_path: Path) -> None:
    root, name = host[1], f"over{over}{seed}"
    if over:
        calls_of_save(host, root / name, "in turn", 1)
    before = read_tree(root)
    calls = interleaved(calls_of_save(host, root / name, "in turn", 2), root, seed)
    found = list(found_after_cuts(calls, root, name, before, tmp_path / "trees"))
    assert {step for _, step in found} == {int(over), 2}
    # Once the save has returned, the new set is there for good.
    assert {step for where, step in found if where.startswith(f"cut before call {len(calls)} of")} == {2}


@pytest.mark.thorough
def test_simulation_finds_what_a_missing_fsync_loses(host: tuple[Host, Path], tmp_path: Path) -> None:
    """Without this the tests above would prove nothing."""
    root = host[1]
    calls_of_save(host, root / "loose", "in turn", 1)
    before = read_tree(root)
    calls = interleaved(calls_of_save(host, root / "loose", "in turn, not durable", 2), root, None)
    with pytest.raises(AssertionError, match="cut before call"):
        list(found_after_cuts(calls, root, "loose", before, tmp_path / "trees"))
