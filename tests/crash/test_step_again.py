"""A step that is there is saved again, resharded or converted: wherever that ends, the old or the new one is whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from change_step import (
    CHANGES,
    OLD,
    convert_and_replace,
    one_rank,
    reshard_in_place,
    save_ranks,
    state,
    two_ranks,
    two_ranks_the_last_first,
)
from crash_lab import Action, Call, Host, read_calls
from disk import LOST, File, Tree, read_tree, trees_after_cut, write_tree
from nanochat_ranks import STEP, write_ranks

import fastckpt
from fastckpt.nanochat.choosing import find_last_step
from fastckpt.nanochat.completeness import newest_complete
from fastckpt.nanochat.meta import read_meta

HERE = Path(__file__).parent
TAG = "base/d2"


def old_fckpt(directory: Path, ranks: int) -> None:
    save_ranks(str(directory), OLD, tuple(range(ranks)))


def old_pt(directory: Path, ranks: int) -> None:
    directory.mkdir(parents=True)
    for rank in range(ranks):
        model, optimizer, meta = state(OLD, rank, ranks)
        torch.save(optimizer, directory / f"optim_{STEP:06d}_rank{rank}.pt")
    torch.save(model, directory / f"model_{STEP:06d}.pt")
    (directory / f"meta_{STEP:06d}.json").write_text(json.dumps(meta))


def ranks_pt(directory: Path, ranks: int) -> None:
    write_ranks(directory, ranks)


def ranks_fckpt(directory: Path, ranks: int) -> None:
    write_ranks(directory, ranks)
    fastckpt.convert(directory, replace=True)


FEW = [
    (one_rank, old_fckpt, 1),
    (two_ranks, old_pt, 2),
    (reshard_in_place, ranks_fckpt, 2),
    (convert_and_replace, ranks_pt, 2),
]
OTHERS = [
    (one_rank, old_pt, 1),
    (one_rank, old_fckpt, 2),
    (two_ranks, old_fckpt, 2),
    (two_ranks, old_fckpt, 1),
    (two_ranks_the_last_first, old_fckpt, 2),
    (two_ranks_the_last_first, old_pt, 2),
    (reshard_in_place, ranks_pt, 2),
    (convert_and_replace, ranks_fckpt, 2),
]
CASES = [*FEW, *(pytest.param(case, marks=pytest.mark.thorough) for case in OTHERS)]
Case = tuple[Callable[[str], None], Callable[[Path, int], None], int]


@pytest.fixture(scope="module")
def host(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    root = tmp_path_factory.mktemp("again").resolve() / "root"
    with Host(HERE / "change_step.py", root, shim) as running:
        yield running, root


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1].__name__}-{case[2]}")
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Tree]:
    """The number of the change, and the step that it changes."""
    change, make, ranks = request.param
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    make(tmp_path / "made" / TAG, ranks)
    return CHANGES.index(change), read_tree(tmp_path / "made")


def number_found(root: Path) -> int:
    """Of which save the step is that training goes on from: all of it, every byte verified."""
    found, _ = newest_complete(root / TAG, verify=True)
    assert found is not None, "there is nothing to go on from"
    assert find_last_step(root / TAG) == STEP
    numbers: set[int] = set()
    for path in found.files:
        if path.endswith(".json"):
            number = read_meta(path).get("number")
            numbers |= {number} if isinstance(number, int) else set()
            continue
        loaded = fastckpt.load(path)
        if "param_groups" in loaded and isinstance(loaded["param_groups"][0]["lr"], int):
            numbers.add(loaded["param_groups"][0]["lr"])
        elif "lm_head.weight" in loaded and numbers:
            numbers.add(int(loaded["lm_head.weight"][0, 0]))
    assert len(numbers) <= 1, f"a mix of {numbers}"
    return numbers.pop() if numbers else found.world_size or 0


def run(host: tuple[Host, Path], case: tuple[int, Tree], action: Action, number: int = 0, error: int = 0) -> bool:
    """Make the change to a fresh copy, with something happening at a call; whether it happened."""
    running, root = host
    shutil.rmtree(root, ignore_errors=True)
    write_tree(root, case[1])
    log = root.parent / "calls" if action is Action.LOG else None
    outcome = running.run(root / TAG, case[0], action=action, number=number, error=error, log=log)
    assert outcome.how in ("saved", "killed", "typed error"), outcome
    assert outcome.hit or outcome.how == "saved", outcome
    return bool(outcome.hit)


def at_every_call(
    host: tuple[Host, Path], case: tuple[int, Tree], action: Action, error: int = 0, *, every: int = 1
) -> Iterator[tuple[int, Path]]:
    for number in range(1, 2000, every):
        if not run(host, case, action, number, error):
            assert number > 20, "the shim sees too few calls to prove anything"
            return
        yield number, host[1]
    raise AssertionError("there is no end of calls")


def hidden(root: Path) -> list[str]:
    return [name for name in os.listdir(root / TAG) if name.startswith(".")]


@pytest.mark.sampled(4)
def test_power_cut(host: tuple[Host, Path], case: tuple[int, Tree], tmp_path: Path) -> None:
    assert not run(host, case, Action.LOG)
    calls, root = read_calls(host[1].parent / "calls"), host[1]
    new = number_found(root)
    assert not hidden(root), "what was kept is gone once all is saved"
    found = []
    for number, (where, tree) in enumerate(trees_after_cut(calls, root, case[1])):
        place = tmp_path / str(number)
        write_tree(place, tree)
        try:
            found.append(number_found(place))
        except AssertionError as error:
            raise AssertionError(f"{where}: {sorted(tree)}") from error
        if where.startswith(f"cut before call {len(calls)} of"):
            assert found[-1] == new, "it had returned"
    assert len(found) > 5


@pytest.mark.slow
def test_killed(host: tuple[Host, Path], case: tuple[int, Tree]) -> None:
    """States that a power cut can leave as well, made by the file system itself."""
    for number, root in at_every_call(host, case, Action.KILL):
        number_found(root)
        # The next run goes on from what is there, and leaves nothing behind.
        if number % 7 == 0:
            outcome = host[0].run(root / TAG, case[0])
            assert outcome.how == "saved", outcome
            assert not hidden(root)


@pytest.mark.thorough
@pytest.mark.parametrize("case", FEW[:1], indirect=True, ids=["one_rank"])
def test_some_calls_fail(host: tuple[Host, Path], case: tuple[int, Tree]) -> None:
    for _, root in at_every_call(host, case, Action.FAIL, errno.EIO, every=4):
        number_found(root)


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_failed(host: tuple[Host, Path], case: tuple[int, Tree], error: int) -> None:
    for _, root in at_every_call(host, case, Action.FAIL, error):
        number_found(root)


def test_simulation_finds_what_was_lost_before(tmp_path: Path) -> None:
    """Without this the tests above would prove nothing: the new files take the place of the old ones one by one."""
    old, new = File(b"old", 5), File(b"new", 7)
    before, root = {f"{TAG}/a": old, f"{TAG}/b": old}, tmp_path / "root"
    write_tree(root, dict.fromkeys(before, new))
    calls = []
    for name in "ab":
        temp, path = f"{root}/{TAG}/{name}.tmp", f"{root}/{TAG}/{name}"
        calls += [Call("open", temp, 0o100, 0, ""), Call("fsync", temp, 0, 0, "")]
        calls += [Call("rename", temp, 0, 0, path), Call("fsync", f"{root}/{TAG}", 0, 0, "")]
    found = {(tree[f"{TAG}/a"], tree[f"{TAG}/b"]) for _, tree in trees_after_cut(calls, root, before)}
    assert found == {(old, old), (new, old), (new, new)}
    # Without its fsync the renamed file may be empty.
    calls = [call for call in calls if call.name != "fsync"]
    assert (LOST, old) in {(tree[f"{TAG}/a"], tree[f"{TAG}/b"]) for _, tree in trees_after_cut(calls, root, before)}
