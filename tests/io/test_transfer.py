"""Moving in turns gives what one move gives; no thread is left, whatever happens."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE
from fastckpt.io.transfer import MEMORY, Fault, Move, Moved, Turn, TurnMover, transfer

DATA = random.Random(4).randbytes(9 * 2**20)
SIZES = [0, 1, LEAF_SIZE, LEAF_SIZE + 7, 3 * CHUNK_SIZE + 5, 700_000, 64]


def moves_of(base: int, target: int) -> tuple[list[Move], int]:
    """Some moves out of DATA, which begins at ``base``, to ``target`` and behind it; the end of the last."""
    moves = []
    at = 0
    for size in SIZES:
        moves.append(Move(base + at, target, size))
        at, target = at + size, target + -(-size // 4096) * 4096
    return moves, target


def plan(source: int) -> list[Turn]:
    """Five turns, from memory and from a file by turns."""
    turns = []
    target = 0
    for number in range(5):
        from_file = number % 2
        moves, target = moves_of(0 if from_file else _core.address(DATA), target)
        turns.append(Turn(source if from_file else MEMORY, -1, moves))
    return turns


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("direct", [False, True])
def test_turns_are_as_one_move_each(tmp_path: Path, threads: int, direct: bool) -> None:
    (tmp_path / "source").write_bytes(DATA)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    turns = plan(source)
    files = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("one", "turns")]
    os.write(files[1], b"x" * len(DATA))  # What follows a move is made zero.
    expected = [transfer(turn.moves, source=turn.source, sink=files[0], threads=threads, crcs=True) for turn in turns]
    sink_direct = -1
    if direct:
        try:
            sink_direct = os.open(tmp_path / "turns", os.O_RDWR | os.O_DIRECT)
        except OSError:
            pytest.skip("no O_DIRECT here")
    told: list[int] = []
    mover = TurnMover(turns, sink=files[1], sink_direct=sink_direct, threads=threads, crcs=True, progress=told.append)
    got: list[Moved] = []
    for _ in turns:
        got.append(mover.wait())
        mover.release()
    mover.close()
    assert [(bytes(m.leaves), list(m.crcs), m.faults) for m in got] == [
        (bytes(m.leaves), list(m.crcs), m.faults) for m in expected
    ]
    os.truncate(tmp_path / "one", -(-os.path.getsize(tmp_path / "one") // 4096) * 4096)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "turns").read_bytes()
    assert told == sorted(told)
    assert told[-1] == 5 * sum(SIZES)
    for fd in (source, *files):
        os.close(fd)


def test_what_cannot_be_read_is_a_fault_of_its_turn(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA[:1_000_000])
    source = os.open(tmp_path / "source", os.O_RDONLY)
    sink = os.open(tmp_path / "sink", os.O_RDWR | os.O_CREAT)
    whole, cut = Move(0, 0, 1000), Move(900_000, 4096, 200_000)
    mover = TurnMover(
        [Turn(source, -1, [whole]), Turn(source, -1, [whole, cut])],
        sink=sink,
        sink_direct=-1,
        threads=2,
        crcs=False,
        progress=None,
    )
    assert mover.wait().faults == []
    mover.release()
    assert mover.wait().faults == [Fault(1, 100_000, 100_000, 0)]
    mover.close()


def test_a_write_that_fails_is_raised_and_no_thread_is_left(tmp_path: Path) -> None:
    (tmp_path / "sink").touch()
    sink = os.open(tmp_path / "sink", os.O_RDONLY)
    before = threading.active_count(), len(os.listdir("/proc/self/task"))
    mover = TurnMover(
        [Turn(MEMORY, -1, moves_of(_core.address(DATA), 0)[0])] * 3,
        sink=sink,
        sink_direct=-1,
        threads=4,
        crcs=False,
        progress=None,
    )
    with pytest.raises(OSError, match="Bad file descriptor"):
        mover.wait()
    mover.close()
    assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == before
    os.close(sink)
