"""Sets and steps, of whose ranks or processes one is killed at each of its calls: the old or the new one is whole.

What is there is judged as a user would: by `fastckpt verify`, and by a load that is compared bit for bit.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from crash_lab import TEMP_SUFFIX, Action, Host, Outcome
from set_states import step_of, version_of

import fastckpt
from fastckpt.cli.main import main

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def host(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    root = tmp_path_factory.mktemp("sets").resolve() / "root"
    root.mkdir()
    with Host(HERE / "save_set.py", root, shim) as running:
        yield running, root / "run"


def step_there(place: Path) -> int:
    """Of which save the set is, or the step that a run goes on from."""
    if not (place / "set.fckpt").exists():
        newest = fastckpt.CheckpointDirectory(place).latest()
        assert newest is not None, "there is nothing to go on from"
        return step_of(fastckpt.load(newest))
    assert main(["verify", str(place)]) == 0
    return step_of(fastckpt.load(place))


class Lab:
    """Saves of step 2 over step 1, each time over the same old files.

    Args:
        host: From the fixture.
        way: How to save: see `save_set`.
    """

    def __init__(self, host: tuple[Host, Path], way: str) -> None:
        self.running, self.place = host
        self.way = way
        self.old = self.place.with_name("old")
        shutil.rmtree(self.old, ignore_errors=True)
        shutil.rmtree(self.place, ignore_errors=True)
        assert self.save(1).how == "saved"
        shutil.copytree(self.place, self.old)

    def save(self, step: int, action: Action = Action.NOTHING, number: int = 0, error: int = 0) -> Outcome:
        version = version_of(self.way, step)
        return self.running.run(self.place, version, action=action, number=number, error=error)

    def over_the_old_one(self, action: Action, number: int, error: int = 0) -> Outcome:
        shutil.rmtree(self.place)
        shutil.copytree(self.old, self.place)
        return self.save(2, action, number, error)

    def check_next_save(self) -> None:
        """It works, and leaves nothing of the one that was cut, nor of the old one."""
        assert self.save(3).how == "saved"
        assert step_there(self.place) == 3
        names = [path.name for path in self.place.iterdir()]
        assert not [name for name in names if name.endswith(TEMP_SUFFIX)]
        assert len(names) == {"step": 1, "rank 0": 3, "rank 1": 3}.get(self.way, 2), names


CALLS = {"rank 0": 35, "rank 1": 18, "thread": 35, "step": 25}
"""A save makes at least as many; fewer would prove nothing."""
KILLS = [
    *((way, 9) for way in CALLS),
    *(pytest.param(way, 4, marks=pytest.mark.thorough) for way in CALLS),
    *(pytest.param(way, 1, marks=pytest.mark.slow) for way in CALLS),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("way", "every"), KILLS)
@pytest.mark.parametrize("action", [Action.KILL, pytest.param(Action.TEAR, marks=pytest.mark.slow)])
def test_killed(host: tuple[Host, Path], way: str, every: int, action: Action) -> None:
    lab, found = Lab(host, way), []
    for number in range(1, 200, every):
        outcome = lab.over_the_old_one(action, number)
        if outcome.how == "saved":
            break
        assert outcome.how == "killed", outcome
        found.append(step_there(lab.place))
        if number % 4 == 1:
            lab.check_next_save()
    assert number > CALLS[way]
    assert found == sorted(found), "once the new one is there it stays"
    assert found[0] == 1
    # The last thing that rank 1 does is to write its shard; the others have the set in place by then.
    assert found[-1] == 1 if way == "rank 1" else found[-1] == 2 or every > 1
    assert step_there(lab.place) == 2


FAILURES = [
    ("rank 0", 15),
    ("rank 1", 11),
    *(pytest.param(way, 5, marks=pytest.mark.thorough) for way in ("thread", "step")),
    *(pytest.param(way, 1, marks=pytest.mark.slow) for way in CALLS),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("way", "every"), FAILURES)
@pytest.mark.parametrize("error", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
def test_a_call_fails(host: tuple[Host, Path], way: str, every: int, error: int) -> None:
    """A rank that cannot go on says so to the other, which then ends as well: neither waits."""
    lab = Lab(host, way)
    for number in range(1, 200, every):
        outcome = lab.over_the_old_one(Action.FAIL, number, error)
        assert outcome.how in ("saved", "typed error"), outcome
        assert step_there(lab.place) in (1, 2)
        if outcome.how == "saved":
            assert step_there(lab.place) == 2
        if not outcome.hit:
            break
    assert number > CALLS[way]
    lab.check_next_save()


SAMPLES = [pytest.param((5, 30), marks=pytest.mark.thorough), pytest.param(range(1, 100), marks=pytest.mark.slow)]


@pytest.mark.parametrize("numbers", SAMPLES)
def test_a_process_that_saves_in_the_background_is_killed(host: tuple[Host, Path], numbers: Iterable[int]) -> None:
    lab, found = Lab(host, "process"), []
    for number in numbers:
        outcome = lab.over_the_old_one(Action.KILL, number)
        if outcome.how == "saved":
            assert len(found) > 35
            break
        assert outcome.how == "RuntimeError", outcome
        assert "process is dead" in outcome.message
        found.append(step_there(lab.place))
    assert found == sorted(found)
    assert found[0] == 1
    lab.check_next_save()
