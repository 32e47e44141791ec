"""SlotFiller: every turn in its slot and in order, no thread left behind, whatever happens."""

from __future__ import annotations

import errno
import gc
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moves import leaves_of
from slowness import within

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE

DATA = random.Random(9).randbytes(3_000_000)
MIB = 1 << 20


def tasks() -> int:
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else threading.active_count()


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = tasks()
    yield
    deadline = time.monotonic() + 2
    while tasks() > before and time.monotonic() < deadline:
        time.sleep(0.002)
    assert tasks() <= before


class Plan:
    """A file in turns of ``slot_size`` bytes, two extents each."""

    def __init__(self, path: Path, slots: int, slot_size: int, size: int = len(DATA)) -> None:
        path.write_bytes(DATA)
        self.fd = os.open(path, os.O_RDONLY)
        self.slots = [bytearray(slot_size) for _ in range(slots)]
        self.rows, self.ends = array("Q"), array("Q")
        self.extents: list[tuple[int, int]] = []
        leaf = 0
        for turn, start in enumerate(range(0, size, slot_size)):
            base = _core.address(self.slots[turn % slots])
            end = min(start + slot_size, size)
            cut = min(start + LEAF_SIZE, end)
            for begin, stop in ((start, cut), (cut, end)):
                self.rows.extend((begin, base + begin - start, stop - begin, leaf))
                self.extents.append((begin, stop))
                leaf += -(-(stop - begin) // LEAF_SIZE)
            self.ends.append(len(self.extents))
        self.leaves = array("Q", bytes(8 * leaf))
        self.crcs = array("I", bytes(4 * len(self.extents)))

    def filler(self, threads: int = 3, hashed: bytearray | None = None) -> _core.SlotFiller:
        columns = self.rows, self.ends, self.leaves, self.crcs
        return _core.SlotFiller(self.fd, *columns, slots=len(self.slots), threads=threads, hashed=hashed)

    def bytes_of(self, turn: int) -> bytes:
        start, stop = self.extents[2 * turn][0], self.extents[2 * turn + 1][1]
        return bytes(self.slots[turn % len(self.slots)][: stop - start])


@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize(("slots", "slot_size"), [(1, LEAF_SIZE), (2, 3 * LEAF_SIZE), (4, MIB), (5, 4 * MIB)])
def test_whole_file(tmp_path: Path, slots: int, slot_size: int, threads: int) -> None:
    plan = Plan(tmp_path / "source", slots, slot_size)
    with no_thread_left():
        filler = plan.filler(threads)
        got = b""
        for turn in range(len(plan.ends)):
            assert filler.wait(turn) == []
            got += plan.bytes_of(turn)
            filler.release()
        filler.close()
    assert got == DATA
    assert list(plan.leaves) == [leaf for begin, stop in plan.extents for leaf in leaves_of(DATA[begin:stop])]
    assert list(plan.crcs) == [zlib.crc32(DATA[begin:stop]) for begin, stop in plan.extents]


def test_turns_that_are_not_hashed(tmp_path: Path) -> None:
    """It can still be said of a turn whose slot is not free."""
    plan = Plan(tmp_path / "source", 2, 4 * LEAF_SIZE, size=40 * LEAF_SIZE)
    hashed = bytearray([1, 0] + [1] * 8)
    filler = plan.filler(hashed=hashed)
    for turn in range(10):
        if turn == 4:
            hashed[6:8] = bytes(2)
        filler.wait(turn)
        filler.release()
    filler.close()
    expected = [leaf for begin, stop in plan.extents for leaf in leaves_of(DATA[begin:stop])]
    assert list(plan.leaves) == [leaf if hashed[number // 4] else 0 for number, leaf in enumerate(expected)]
    assert list(plan.crcs) == [zlib.crc32(DATA[begin:stop]) for begin, stop in plan.extents]


def test_a_slot_is_not_touched_before_it_is_released(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "source", 2, 64 * 1024)
    filler = plan.filler()
    filler.wait(0)
    filler.wait(1)
    held = plan.bytes_of(0), plan.bytes_of(1)
    time.sleep(0.05)
    assert held == (DATA[: 64 * 1024], DATA[64 * 1024 : 128 * 1024])
    assert (plan.bytes_of(0), plan.bytes_of(1)) == held
    filler.release()
    filler.wait(2)
    assert plan.bytes_of(1) == held[1]
    filler.close()


def test_end_of_file(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "source", 3, MIB, size=4 * MIB)
    filler = plan.filler()
    faults = []
    for turn in range(4):
        faults += filler.wait(turn)
        filler.release()
    filler.close()
    missing = [
        (number, max(len(DATA) - begin, 0), stop - max(begin, len(DATA)), 0)
        for number, (begin, stop) in enumerate(plan.extents)
        if stop > len(DATA)
    ]
    assert sorted(faults) == missing


def test_closed_descriptor(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "source", 2, MIB)
    os.close(plan.fd)
    filler = plan.filler()
    assert {fault[3] for fault in filler.wait(0)} == {errno.EBADF}
    filler.close()


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_closing(tmp_path: Path, after: int) -> None:
    plan = Plan(tmp_path / "source", 2, 8 * LEAF_SIZE)
    for end in ("close", "drop"):
        with no_thread_left():
            filler = plan.filler()
            for turn in range(after):
                filler.wait(turn)
                filler.release()
            if end == "close":
                filler.close()
                filler.close()
                with pytest.raises(ValueError, match="closed"):
                    filler.wait(after)
                with pytest.raises(ValueError, match="closed"):
                    filler.release()
            del filler
            gc.collect()


def test_closed_while_another_thread_waits(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "source", 2, 8 * LEAF_SIZE)
    filler = plan.filler()
    raised: list[str] = []

    def wait() -> None:
        try:
            filler.wait(5)  # Its slot is never released.
        except ValueError as error:
            raised.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.05)
    filler.close()
    waiting.join(2)
    assert raised == ["the filler is closed"]


def test_wrong_use(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "source", 2, MIB)
    good = {"slots": 2, "threads": 1}
    arguments = (plan.fd, plan.rows, plan.ends, plan.leaves, plan.crcs)
    with pytest.raises(ValueError, match="no slot to fill"):
        _core.SlotFiller(*arguments, **(good | {"slots": 0}))
    with pytest.raises(ValueError, match="threads must be"):
        _core.SlotFiller(*arguments, **(good | {"threads": 0}))
    for ends in ([1, 2, 3], [2, 1, 6], [2, 4, 7], []):
        with pytest.raises(ValueError, match="turn"):
            _core.SlotFiller(plan.fd, plan.rows, array("Q", ends), None, None, **good)
    with pytest.raises(ValueError, match="leaves out of range"):
        _core.SlotFiller(plan.fd, plan.rows, plan.ends, plan.leaves[:-1], None, **good)
    with pytest.raises(ValueError, match="crcs"):
        _core.SlotFiller(plan.fd, plan.rows, plan.ends, None, plan.crcs[:-1], **good)
    with pytest.raises(ValueError, match="hashed: not one for each turn"):
        _core.SlotFiller(*arguments, **good, hashed=bytes(len(plan.ends) - 1))
    filler = _core.SlotFiller(plan.fd, array("Q"), array("Q", [0, 0]), None, None, **good)
    assert filler.wait(0) == filler.wait(1) == []
    filler.release()
    filler.release()
    with pytest.raises(ValueError, match="no full slot"):
        filler.release()
    filler.close()


PROGRAM = """
    import os, resource, signal, sys, threading, time
    from array import array
    from fastckpt import _core
    fd = os.open(sys.argv[1], os.O_RDONLY)
    slots = [bytearray(1 << 20) for _ in range(2)]
    addresses = [_core.address(slot) for slot in slots]
    rows, ends = array("Q"), array("Q")
    for turn in range(int(sys.argv[2])):
        rows.extend((0, addresses[turn % 2], 1 << 20, 0))
        ends.append(turn + 1)

    def start():
        return _core.SlotFiller(fd, rows, ends, None, None, slots=2, threads=2)
"""


def run(path: Path, turns: int, code: str) -> str:
    path.write_bytes(DATA)
    program = textwrap.dedent(PROGRAM) + textwrap.dedent(code)
    command = [sys.executable, "-c", program, str(path), str(turns)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.serial
@pytest.mark.parametrize("released", [True, False])
def test_interrupt(tmp_path: Path, released: bool) -> None:
    """Between turns that come and go, and while it waits for one that never comes."""
    code = f"""
        filler = start()
        pressed = []
        def press():
            time.sleep(0.2)
            pressed.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)
        presser = threading.Thread(target=press)
        presser.start()
        try:
            for turn in range(len(ends)):
                filler.wait(turn)
                if {released}:
                    filler.release()
            sys.exit("it ended before it was interrupted")
        except KeyboardInterrupt:
            late = time.perf_counter() - pressed[0]
        filler.close()
        presser.join()
        deadline = time.monotonic() + 5
        while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        print(late, len(os.listdir("/proc/self/task")))
    """
    late, left = run(tmp_path / "source", 200_000, code).split()
    assert within(float(late), 0.5)
    assert int(left) == 1


def test_fork(tmp_path: Path) -> None:
    """A child that inherits a filler ends like any other."""
    code = """
        filler = start()
        filler.wait(0)
        child = os.fork()
        if child == 0:
            filler.close()
            del filler
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        filler.release()
        filler.wait(2)
        filler.close()
    """
    assert run(tmp_path / "source", 4, code) == "7\n"


def test_where_no_thread_can_be_had(tmp_path: Path) -> None:
    code = """
        used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), used + (4 << 20)))
        filler = start()
        for turn in range(len(ends)):
            assert filler.wait(turn) == []
            filler.release()
        print(len(os.listdir("/proc/self/task")))
    """
    assert run(tmp_path / "source", 5, code) == "1\n"
