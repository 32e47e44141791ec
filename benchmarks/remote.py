"""How fast a checkpoint comes from a server, verified, and goes there, beside the same requests by obstore alone.

    python benchmarks/remote.py [--megabytes N] [--rounds N] [--workers N]

Server and client share this computer: only ratios within one run count. Every way fetches ranges of 8 MiB, as many at
a time, and sends parts of 16 MiB, eight at a time; rounds are interleaved, and medians compared. The result goes to
``benchmarks/results/remote.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import obstore
import torch
from bench import machine
from obstore.store import HTTPStore, S3Store
from remote_peers import peers

import fastckpt
from fastckpt.io.upload import PART, UNDER_WAY
from fastckpt.remote.store import RANGE

TARGETS: Final = {"load_into / raw": 0.85, "load / raw + copy": 0.9}
SAVE: Final = "save / raw put"


class Raw:
    """An object fetched by obstore alone."""

    def __init__(self, url: str, key: str, size: int, workers: int) -> None:
        self._store = HTTPStore.from_url(url, client_options={"allow_http": True})
        self._key, self._size = key, size
        self._pool = ThreadPoolExecutor(workers)

    def _each(self, use: Callable[[int, memoryview], object]) -> None:
        def fetch(start: int) -> None:
            stop = min(start + RANGE, self._size)
            use(start, memoryview(obstore.get_range(self._store, self._key, start=start, end=stop)))

        list(self._pool.map(fetch, range(0, self._size, RANGE)))

    def drop(self) -> None:
        """Fetch all of it, and keep nothing."""
        self._each(lambda start, data: None)

    def copy(self) -> torch.Tensor:
        """Fetch all of it into fresh memory."""
        memory = torch.empty(self._size, dtype=torch.uint8)
        into = memoryview(memory.numpy())

        def put(start: int, data: memoryview) -> None:
            into[start : start + data.nbytes] = data

        self._each(put)
        return memory


def measure(ways: dict[str, Callable[[], object]], nbytes: int, rounds: int) -> dict[str, dict[str, float]]:
    """GB/s of each way, median and best of interleaved rounds, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median": round(nbytes / statistics.median(taken) / 1e9, 3), "best": round(nbytes / min(taken) / 1e9, 3)}
        for name, taken in seconds.items()
    }


def run(directory: Path, *, megabytes: int, rounds: int, workers: int) -> dict[str, Any]:
    """All ways to read one file."""
    elements = megabytes * 10**6 // 4 // 25
    state = {f"layers.{n}": torch.randn(elements) for n in range(25)}
    path = directory / "state.fckpt"
    fastckpt.save(state, path)
    size = path.stat().st_size
    command = [sys.executable, str(Path(__file__).with_name("object_server.py")), str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        base = f"http://127.0.0.1:{int(server.stdout.readline())}"
        url = f"{base}/{path.name}"
        raw = Raw(base, path.name, size, workers)
        others, skipped = peers(directory, state, base, workers)
        speeds = measure(
            {
                "raw": raw.drop,
                "load_into": lambda: fastckpt.load_into(state, url, threads=workers),
                "raw + copy": raw.copy,
                "load": lambda: fastckpt.load(url, threads=workers),
                "load, unverified": lambda: fastckpt.load(url, threads=workers, verify=False),
                "stream": lambda: [None for _ in fastckpt.stream(url, threads=workers)],
                "verify": lambda: fastckpt.verify(url, threads=workers),
                **others,
            },
            size,
            rounds,
        )
        assert server.stdin is not None
        server.stdin.close()
    ratios = {}
    for name in TARGETS:
        ours, theirs = name.split(" / ")
        ratios[name] = round(speeds[ours]["median"] / speeds[theirs]["median"], 3)
    facts = {"bytes": size, "workers": workers, "rounds": rounds, "skipped": skipped}
    return {**facts, "gb_per_s": speeds, "ratios": ratios, "targets": TARGETS}


def run_save(directory: Path, *, megabytes: int, rounds: int) -> dict[str, Any]:
    """A state sent to a bucket, and the bytes of its file, which lie in memory, sent by obstore."""
    elements = megabytes * 10**6 // 4 // 25
    state = {f"layers.{n}": torch.randn(elements) for n in range(25)}
    fastckpt.save(state, directory / "state.fckpt", durable=False)
    data = (directory / "state.fckpt").read_bytes()
    command = [sys.executable, str(Path(__file__).with_name("object_server.py")), str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        options: dict[str, Any] = {
            "endpoint": f"http://127.0.0.1:{int(server.stdout.readline())}",
            "access_key_id": "id",
            "secret_access_key": "secret",
            "region": "us-east-1",
            "unsigned_payload": True,  # Else most of the time would be that of SHA-256, in both.
        }
        store = S3Store("bucket", client_options={"allow_http": True}, **options)
        url = "s3://bucket/run.fckpt"
        speeds = measure(
            {
                "raw put": lambda: obstore.put(
                    store, "raw", data, use_multipart=True, chunk_size=PART, max_concurrency=UNDER_WAY
                ),
                "save": lambda: fastckpt.save(state, url, storage_options=options),
            },
            len(data),
            rounds,
        )
        assert server.stdin is not None
        server.stdin.close()
    ratio = round(speeds["save"]["median"] / speeds["raw put"]["median"], 3)
    facts = {"bytes": len(data), "workers": UNDER_WAY, "rounds": rounds}
    return {**facts, "gb_per_s": speeds, "ratios": {SAVE: ratio}, "targets": {SAVE: 0.9}}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = run(Path(directory), megabytes=args.megabytes, rounds=args.rounds, workers=args.workers)
        found["machine"] = machine(directory)
        sent = run_save(Path(directory), megabytes=args.megabytes, rounds=args.rounds)
    result = Path(__file__).parent / "results" / "remote.json"
    known = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    result.write_text(json.dumps({**known, "read": found, "save": sent}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps([found, sent], indent=1))


if __name__ == "__main__":
    main()
