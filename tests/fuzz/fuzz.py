"""Changes the inputs of a corpus at random, and keeps those that make a target say something new.

From the root of the repository::

    python tests/fuzz/fuzz.py pickle --seconds 60 --seed 7     one target (all, if none is named)
    python tests/fuzz/fuzz.py pickle crash-pickle-12ab34cd     run one input

An input that fails is written to ``crash-TARGET-DIGEST`` in the working directory. No coverage is measured: what is new
is told by the errors and findings with their numbers left out, which differ at almost every branch of a parser.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import signal
import struct
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch  # noqa: F401  (the first import takes longer than an input may)
from targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
INPUT_SECONDS = 5
"""One input that takes longer hangs."""
MAX_INPUT = 200_000
MAX_POOL = 400
NUMBERS = (0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 4095, 4096, 4097, 16384, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
WIDE = (2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1)


class HangError(BaseException):
    """An input took too long."""


@dataclass
class Result:
    """What came of fuzzing one target."""

    target: str
    replayed: int = 0
    made: int = 0
    kept: int = 0
    slowest: float = 0.0
    failures: list[tuple[bytes, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.target}: {self.replayed} of the corpus, {self.made} made, {self.kept} of them new, "
            f"slowest {self.slowest * 1000:.0f} ms, {len(self.failures)} failures"
        )


def change(pool: list[bytes], tokens: tuple[bytes, ...], r: random.Random) -> bytes:
    """One of the pool, with some changes."""
    data = bytearray(r.choice(pool))
    for _ in range(r.choice((1, 1, 1, 2, 3, 5, 8))):
        size = len(data)
        at = r.randrange(size + 1)
        how = r.randrange(10)
        if how == 0 and at < size:
            data[at] ^= 1 << r.randrange(8)
        elif how == 1 and at < size:
            data[at] = r.randrange(256)
        elif how == 2:
            width = r.choice((1, 2, 4, 8))
            number = (r.choice(NUMBERS + WIDE) + r.choice((-1, 0, 0, 0, 1))) % (1 << 8 * width)
            piece = number.to_bytes(width, r.choice(("little", "little", "little", "big")))
            data[at : at + width] = piece
        elif how == 3:
            del data[at : at + min(r.choice((1, 2, 4, 8, 64, 4096)), size)]
        elif how == 4:
            data[at:at] = r.randbytes(r.choice((1, 2, 8, 40)))
        elif how == 5 and tokens:
            token = r.choice(tokens)
            data[at : at + r.choice((0, len(token)))] = token
        elif how == 6:
            other = r.choice(pool)
            start = r.randrange(len(other) + 1)
            data[at : at + r.choice((0, 8, 64))] = other[start : start + r.choice((4, 8, 32, 300))]
        elif how == 7:
            start = r.randrange(size + 1)
            data[at:at] = data[start : start + r.choice((4, 8, 24, 64, 200))] * r.choice((1, 1, 2, 20))
        elif how == 8 and size >= 8:
            # A number that is there becomes slightly another one.
            at = r.randrange(size - 7)
            width, code = r.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
            (value,) = struct.unpack_from(code, data, at)
            value = (value + r.choice((-4096, -16, -8, -1, 1, 8, 16, 4096))) % (1 << 8 * width)
            struct.pack_into(code, data, at, value)
        elif how == 9:
            del data[r.randrange(size + 1) :]
    return bytes(data[:MAX_INPUT])


def _signature(text: str) -> str:
    return re.sub(r"[0-9a-f]{8,}|\d+|'[^']*'|\"[^\"]*\"", "N", text)


def _try(target: Target, data: bytes, result: Result) -> str | None:
    """What the target says; None, and a failure in the result, where it does not hold."""
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, INPUT_SECONDS)
    try:
        return target.run(data)
    except (Exception, HangError):
        result.failures.append((data, traceback.format_exc(limit=-8)))
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        result.slowest = max(result.slowest, time.perf_counter() - started)


def _ring(*_: object) -> None:
    raise HangError(f"more than {INPUT_SECONDS} s")


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept with the tests."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def fuzz(name: str, seconds: float, seed: int, *, most: int = 5) -> Result:
    """Replay the corpus of a target, then make inputs for some seconds; stop after ``most`` failures."""
    target, r, result = TARGETS[name], random.Random(f"{name}:{seed}"), Result(name)
    before = signal.signal(signal.SIGALRM, _ring)
    try:
        pool = corpus(name)
        seen = set()
        for data in pool:
            seen.add(_signature(_try(target, data, result) or ""))
            result.replayed += 1
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(result.failures) < most:
            data = change(pool, target.tokens, r)
            said = _try(target, data, result)
            result.made += 1
            if said is not None and (signature := _signature(said)) not in seen:
                seen.add(signature)
                result.kept += 1
                if len(pool) < MAX_POOL and len(data) < 50_000:
                    pool.append(data)
    finally:
        signal.signal(signal.SIGALRM, before)
    return result


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="fuzz what reads files")
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS))
    parser.add_argument("inputs", nargs="*", type=Path, help="run these, and make no others")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    failed = False
    for path in arguments.inputs:
        print(TARGETS[arguments.target].run(path.read_bytes()))
    if arguments.inputs:
        return 0
    for name in [arguments.target] if arguments.target else sorted(TARGETS):
        result = fuzz(name, arguments.seconds, arguments.seed)
        print(result)
        for data, text in result.failures:
            failed = True
            path = Path(f"crash-{name}-{hashlib.sha256(data).hexdigest()[:8]}")
            path.write_bytes(data)
            print(f"{path}\n{text}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
