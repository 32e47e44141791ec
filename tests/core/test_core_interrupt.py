"""Ctrl-C is heard within 0.2 s and leaves no threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from slowness import within

PROLOGUE = """
    import os, signal, sys, threading, time
    from array import array
    from fastckpt import _core

    MiB = 1 << 20
    data = bytearray(64 * MiB)
    target = bytearray(64 * MiB)
    leaves = array("Q", bytes(8 * 4096))
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, data, 0)
    address = _core.address(data)

    def rows(source, sink, times):
        return array("Q", [source, sink, len(data), 0] * times)

    def interrupt_during(work):
        pressed = []

        def press():
            time.sleep(0.3)
            pressed.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press).start()
        try:
            work()
        except KeyboardInterrupt:
            late = time.perf_counter() - pressed[0]
        else:
            sys.exit("it ended before it was interrupted")
        tasks = lambda: len(os.listdir("/proc/self/task")) if os.path.exists("/proc") else 1
        deadline = time.monotonic() + 5
        while tasks() > 1 and time.monotonic() < deadline:  # One that was joined may still be listed.
            time.sleep(0.01)
        print(late, tasks())
"""

WORKS = {
    "hash": "_core.transfer(-1, -2, rows(address, 0, 2000), leaves, None, threads=3)",
    "read": "_core.transfer(fd, -1, rows(0, address, 2000), leaves, None, threads=3)",
    "copy": "_core.transfer(-1, -1, rows(address, _core.address(target), 2000), None, None, threads=3)",
    "write": "_core.transfer(-1, fd, rows(address, 0, 2000), None, None, threads=2)",
    "small": "_core.transfer(-1, -2, array('Q', [address, 0, 64, 0] * 3_000_000), leaves, None, threads=2)",
    "parity": "[_core.encode_parity(data, len(data), 64, 2, 0, target[: 2 * MiB], None, threads=3) for _ in target]",
    "scan": "[_core.find_blocks(fd, b'FCKPTREC', 0, 1 << 40, threads=2) for _ in range(10_000)]",
}


@pytest.mark.serial
@pytest.mark.parametrize("name", WORKS)
def test_interrupt(tmp_path: Path, name: str) -> None:
    program = textwrap.dedent(PROLOGUE) + f"\ninterrupt_during(lambda: {WORKS[name]})\n"
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    late, tasks = result.stdout.split()
    assert within(float(late), 0.2)
    assert int(tasks) == 1
