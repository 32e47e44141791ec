"""Threads that Ctrl-C can stop, at whatever moment it comes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from fastckpt.io.pool import Pool, map_in_order


def test_in_order_and_no_more_in_hand_than_needed() -> None:
    taken: list[int] = []

    def items() -> object:
        for number in range(50):
            taken.append(number)
            yield number

    done = map_in_order(lambda n: n * n, items(), threads=3)  # type: ignore[arg-type]
    assert next(done) == 0
    assert len(taken) <= 7
    assert list(done) == [n * n for n in range(1, 50)]


def test_the_first_error_is_raised_once_no_thread_works() -> None:
    working = threading.Semaphore(0)

    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        time.sleep(0.01)
        working.release()
        return number

    with pytest.raises(ValueError, match="three"):
        list(map_in_order(work, range(1000), threads=4))
    done = working._value
    time.sleep(0.05)
    assert working._value == done < 20


def test_what_was_not_begun_is_dropped_when_the_pool_is_closed() -> None:
    begun: list[int] = []
    pool = Pool(2)
    for number in range(100):
        pool.submit(lambda number=number: (begun.append(number), time.sleep(0.01)))  # type: ignore[misc]
    pool.close()
    assert len(begun) < 10


def test_threads_end_when_the_pool_is_dropped_unclosed() -> None:
    """An interrupt that comes as ``close`` is called leaves nothing else to end them."""
    before = len(os.listdir("/proc/self/task"))
    pool = Pool(3)
    assert [pool.submit(lambda number=number: number).result() for number in range(6)] == list(range(6))  # type: ignore[misc]
    assert pool._started == 3
    del pool
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/task")) <= before


INTERRUPTED = """
import os, random, signal, time
from fastckpt.io.pool import map_in_order

r = random.Random(1)
interrupted = 0
for _ in range(400):
    try:
        signal.setitimer(signal.ITIMER_REAL, r.uniform(1e-5, 3e-3))
        while True:
            for result in map_in_order(lambda n: n, range(40), threads=3):
                pass
    except KeyboardInterrupt:
        interrupted += 1
deadline = time.monotonic() + 10
while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
    time.sleep(0.01)  # An interrupt while a pool is closed leaves its threads to end by themselves.
print(interrupted, len(os.listdir("/proc/self/task")))
"""


def test_interrupts_at_any_moment_leave_nothing_locked() -> None:
    code = "import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)\n" + INTERRUPTED
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["400", "1"]
