"""What a load from a bucket takes in memory besides the tensors: the ranges under way, and little more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bucket import Bucket

import fastckpt

_SERVER = Path(__file__).parents[2] / "benchmarks" / "object_server.py"
# Resident memory that is no file's: of a map of the file the kernel takes back what it likes.
_LOAD = """
import sys, threading, time
import torch, fastckpt

url, elements = sys.argv[1], int(sys.argv[2])
state = {str(n): torch.ones(elements) for n in range(3)}
fastckpt.load_into({"warm": torch.ones(1)}, url.replace("large", "small"))

def used():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

before, most, done = used(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        most[0] = max(most[0], used())

watcher = threading.Thread(target=watch)
watcher.start()
fastckpt.load_into(state, url)
done.set()
watcher.join()
assert all(bool((tensor == n).all()) for n, tensor in enumerate(state.values()))
print(most[0] - before)
"""


def _bytes_beside_the_tensors(directory: Path, megabytes: int) -> int:
    pytest.importorskip("obstore", reason="needs obstore, of the extra remote")
    if not sys.platform.startswith("linux"):
        pytest.skip("asks /proc")
    elements = megabytes * 10**6 // 12
    fastckpt.save({str(n): torch.full((elements,), float(n)) for n in range(3)}, directory / "large", durable=False)
    fastckpt.save({"warm": torch.ones(1)}, directory / "small", durable=False)
    server = [sys.executable, str(_SERVER), str(directory)]
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        assert serving.stdin is not None
        url = f"http://127.0.0.1:{int(serving.stdout.readline())}/large"
        used = _bytes_of_a_load(url, elements)
        serving.stdin.close()
    return used


def _bytes_of_a_load(url: str, elements: int) -> int:
    line = [sys.executable, "-c", _LOAD, url, str(elements)]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert not ran.returncode, ran.stderr
    return int(ran.stdout)


@pytest.mark.thorough
def test_a_large_file_takes_no_more_than_its_ranges(tmp_path: Path) -> None:
    # Eight ranges of 8 MiB, each of which its connection can hold twice while it arrives.
    assert _bytes_beside_the_tensors(tmp_path, 300) < 160 * 2**20


@pytest.mark.thorough
def test_a_set_takes_no_more_than_the_ranges_of_its_shards(bucket: Bucket, tmp_path: Path) -> None:
    elements = 25 * 10**6
    fastckpt.save({str(n): torch.full((elements,), float(n)) for n in range(3)}, tmp_path / "a.fckpt", durable=False)
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "large", shard_size=10**8, durable=False)
    fastckpt.dcp.save({"warm": torch.ones(1)}, tmp_path / "small", no_dist=True)
    for path in (*(tmp_path / "large").iterdir(), *(tmp_path / "small").iterdir()):
        bucket.put(f"{path.parent.name}/{path.name}", path.read_bytes())
    assert _bytes_of_a_load(bucket.url("large/"), elements) < 160 * 2**20
