"""A process that is interrupted while requests are under way, and ends at once, ends in order: nothing aborts it."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from bucket import Bucket

CODE = """
import _thread, os, signal, sys, time
from fastckpt.io import upload
from fastckpt.io.remote_source import RemoteSource
from fastckpt.io.transfer import NOWHERE, Move
from fastckpt.remote.path import located

def read():
    source = RemoteSource(located(url))
    begun()
    while True:
        source.transfer([Move(0, 0, source.size)], sink=NOWHERE, threads=8)

def write():
    upload.PART = 2**18
    begun()
    while True:
        with upload.Upload(located(url), most=2**24) as there:
            there.write(0, bytes(2**24))
            there.finish(2**24)

def begun():
    _thread.start_new_thread(lambda: (time.sleep(float(seconds)), os.kill(os.getpid(), signal.SIGINT)), ())

what, url, seconds = sys.argv[1:]
try:
    {"read": read, "write": write}[what]()
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("what", ["read", "write"])
@pytest.mark.parametrize("runs", [3, pytest.param(200, marks=pytest.mark.thorough)])
def test_interrupted_while_all_goes_well(bucket: Bucket, what: str, runs: int) -> None:
    bucket.put("x", bytes(2**26))
    for number in range(runs):
        seconds = str(random.Random(number).random() / 10)
        command = [sys.executable, "-c", CODE, what, bucket.url("x"), seconds]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", ""), f"after {seconds} s"
