"""Ctrl-C at any moment: soon over, nothing left behind, and whatever stood there before still whole."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from forked import Forked
from slowness import within
from states import compressible, pattern

import fastckpt

LIMIT = 0.5
"""Seconds from the signal to the exception; 0.2 is promised, on a machine that is not busy with other tests."""

ROUNDS = 3
LOST = 60
"""Seconds after which the signal is lost: Python drops exceptions that are raised in finalizers and weak references."""

WORKER = """
import os, sys, threading, time
import torch
import fastckpt
action, directory = sys.argv[1], sys.argv[2]
old, new = os.path.join(directory, "old.fckpt"), os.path.join(directory, "new.fckpt")
state = fastckpt.load(old)
actions = {
    "save": lambda: fastckpt.save(state, new),
    "save zstd": lambda: fastckpt.save(state, new, codec="zstd:9"),
    "save quickly": lambda: fastckpt.save(state, new, durable=False, threads=1),
    "load": lambda: fastckpt.load(old),
    "load zstd": lambda: fastckpt.load(os.path.join(directory, "z.fckpt")),
    "load mmap": lambda: fastckpt.load(old, mmap=True),
    "load pt": lambda: fastckpt.load(os.path.join(directory, "m.pt")),
    "load_into": lambda: fastckpt.load_into(state, old),
    "verify": lambda: fastckpt.verify(old),
    "verify zstd": lambda: fastckpt.verify(os.path.join(directory, "z.fckpt")),
    "verify cut": lambda: fastckpt.verify(os.path.join(directory, "cut.fckpt")),
    "convert": lambda: fastckpt.convert(os.path.join(directory, "m.pt"), new),
    "convert zstd": lambda: fastckpt.convert(os.path.join(directory, "m.pt"), new, codec="zstd:9"),
    "convert back": lambda: fastckpt.convert(os.path.join(directory, "m.fckpt"), os.path.join(directory, "new.pt")),
}
work = actions[action]

def threads():
    return len(os.listdir("/proc/self/task"))

work()
time.sleep(0.05)
before = threads()
while True:
    print("ready", flush=True)
    try:
        while True:
            work()
    except KeyboardInterrupt:
        at = time.monotonic()
    settled = time.monotonic() + 1
    while threads() > before and time.monotonic() < settled:
        time.sleep(0.005)
    # Counted by the system: Python's own count keeps a thread whose start was interrupted and that never ran.
    print(at, threads() - before, flush=True)
    if sys.stdin.readline().strip() == "end":
        break
"""

ACTIONS = [
    *("save", "save zstd", "save quickly", "load", "load zstd", "load mmap", "load pt", "load_into"),
    *("verify", "verify zstd", "verify cut", "convert", "convert zstd", "convert back"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, large enough that most signals come while bytes are moved."""
    directory = tmp_path_factory.mktemp("interrupt")
    state = {f"layer.{i}": pattern(16 * 2**20, i) for i in range(8)}
    state |= {f"small.{i}": torch.full((500,), i) for i in range(200)}
    fastckpt.save(state, directory / "old.fckpt", durable=False)
    soft = {f"layer.{i}": compressible(16 * 2**20, i) for i in range(8)}
    fastckpt.save(soft, directory / "z.fckpt", codec="zstd", durable=False)
    torch.save(state, directory / "m.pt")
    fastckpt.convert(directory / "m.pt", directory / "m.fckpt", durable=False)
    (directory / "cut.fckpt").write_bytes((directory / "old.fckpt").read_bytes()[:-10_000])
    return directory


@pytest.mark.serial
@pytest.mark.parametrize("action", ACTIONS)
def test_interrupt(files: Path, action: str) -> None:
    generator = random.Random(action)
    kept = sorted(p.name for p in files.iterdir())
    worker = Forked("-c", WORKER, action, str(files))
    watch = threading.Timer(LOST, worker.kill)
    watch.start()
    try:
        latencies = []
        for turn in range(ROUNDS):
            assert worker.stdout.readline().split() == ["ready"]
            time.sleep(generator.uniform(0.002, 0.15))
            sent = time.monotonic()
            os.kill(worker.pid, signal.SIGINT)
            at, extra_threads = worker.stdout.readline().split()
            latencies.append(float(at) - sent)
            assert int(extra_threads) == 0
            present = sorted(p.name for p in files.iterdir())
            assert [name for name in present if "fckpt-tmp" in name] == []
            assert set(present) <= {*kept, "new.fckpt", "new.pt"}
            for new in ("new.fckpt", "new.pt"):
                if new in present:
                    assert fastckpt.verify(files / new).ok, "always a whole file"
            worker.stdin.write("end\n" if turn == ROUNDS - 1 else "go\n")
            worker.stdin.flush()
        assert worker.wait(30) == 0
    finally:
        watch.cancel()
        worker.kill()
        worker.communicate()
        for new in ("new.fckpt", "new.pt"):
            (files / new).unlink(missing_ok=True)
    assert sorted(p.name for p in files.iterdir()) == kept
    assert fastckpt.verify(files / "old.fckpt").ok
    assert within(max(latencies), LIMIT), [round(latency, 3) for latency in latencies]


def test_interrupted_from_a_callback(tmp_path: Path) -> None:
    """The same way out when the exception comes from the user's own function."""

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    state = {"a": compressible(20_000_000)}
    path = tmp_path / "s.fckpt"
    fastckpt.save({"old": torch.ones(3)}, path)
    before = path.read_bytes()
    torch.save(state, tmp_path / "m.pt")
    tasks = len(os.listdir("/proc/self/task"))
    for codec in ("none", "zstd"):
        with pytest.raises(KeyboardInterrupt):
            fastckpt.save(state, path, codec=codec, progress=interrupt)
        with pytest.raises(KeyboardInterrupt):
            fastckpt.convert(tmp_path / "m.pt", path, codec=codec, progress=interrupt)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pt", "s.fckpt"]
    deadline = time.monotonic() + 1
    while len(os.listdir("/proc/self/task")) > tasks and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/task")) <= tasks
