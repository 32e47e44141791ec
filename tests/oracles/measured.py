"""Code that runs in a process of its own and measures the memory that it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from forked import run

HEAD = """
import json, sys, threading, time
import fastckpt

def now(field="VmRSS"):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

def anonymous():
    # Pages of a mapped file are the page cache's; what must not grow is our own memory.
    return now("RssAnon") + now("RssShmem")

class Peak:
    '''The highest anonymous memory while the block runs, looked at every millisecond.'''
    def __enter__(self):
        self.before = self.peak = anonymous()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while not self.stop.wait(0.001):
            self.peak = max(self.peak, anonymous())
    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()
        self.growth = max(self.peak, anonymous()) - self.before
"""


def measured(code: str, *arguments: Path | str) -> dict[str, Any]:
    """What the code prints as JSON; where it imports torch, that is there from the beginning."""
    command = ["-c", HEAD + code, *map(str, arguments)]
    if "\nimport torch\n" in code:
        done = run(*command)
    else:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
