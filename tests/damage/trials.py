"""Running many cases of a lab: in several processes, each case with a time limit, and counted whatever happens."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from goods import good_files, use_directory
from oracle import INTACT, LOST, PARTIAL, UNVERIFIED

CASE_SECONDS = 10
"""A case that takes longer hangs."""
STUCK_SECONDS = 6 * CASE_SECONDS
"""A worker that is at one case for longer has not heard the alarm: it is ended."""
MEMORY_LIMIT = 300 * 2**20
"""By how much a worker may grow over all its cases, in bytes."""
NIGHTLY = 1_000_000
MAX_FAILURES = 500
"""From this many on, a worker stops."""


class WrongError(AssertionError):
    """Salvage said or wrote what is not true, or not enough."""


class HangError(BaseException):
    """A case took too long. Not an Exception, so that nothing catches it."""


@dataclass
class Outcome:
    """What became of one case."""

    kind: str
    good: str
    statuses: Counter[str] = field(default_factory=Counter)
    required: int = 0
    refused: bool = False
    written: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise HangError in a block that takes longer."""

    def ring(*_: object) -> None:
        raise HangError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Tally:
    """Counts over many cases."""

    cases: Counter[str] = field(default_factory=Counter)
    goods: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    required: int = 0
    refused: int = 0
    written: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    grown: int = 0
    seconds: float = 0.0

    def add(self, outcome: Outcome, seed: int) -> None:
        """Count one case."""
        self.cases[outcome.kind] += 1
        self.goods[outcome.good] += 1
        self.statuses.setdefault(outcome.kind, Counter()).update(outcome.statuses)
        self.required += outcome.required
        self.refused += outcome.refused
        self.written += outcome.written
        self.slowest = max(self.slowest, (outcome.seconds, f"{outcome.kind}:{seed}"))

    def merge(self, other: Tally) -> None:
        """Add what another worker counted."""
        self.cases += other.cases
        self.goods += other.goods
        for kind, statuses in other.statuses.items():
            self.statuses.setdefault(kind, Counter()).update(statuses)
        self.required += other.required
        self.refused += other.refused
        self.written += other.written
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.grown = max(self.grown, other.grown)

    def count(self, kind: str) -> int:
        """Failures of one kind: wrong, untyped or hang."""
        return sum(failure["what"] == kind for failure in self.failures)

    def summary(self) -> str:
        """One line."""
        total: Counter[str] = sum(self.statuses.values(), Counter())
        return (
            f"damage lab: {sum(self.cases.values())} cases of {len(self.cases)} kinds on {len(self.goods)} files in "
            f"{self.seconds:.0f} s: {total[INTACT]} tensors intact ({self.required} had to be), "
            f"{total[UNVERIFIED]} unverified, {total['damaged']} damaged, {total[PARTIAL]} partial, "
            f"{total[LOST]} lost; {self.written} written and compared; {self.refused} files refused; "
            f"{self.count('wrong')} wrong, "
            f"{self.count('untyped')} untyped exceptions, {self.count('hang')} hangs; slowest {self.slowest[1]} "
            f"{self.slowest[0] * 1000:.0f} ms; memory grew by {self.grown >> 20} MiB"
        )

    def table(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "cases": sum(self.cases.values()),
            "seconds": round(self.seconds, 1),
            "required_intact": self.required,
            "refused": self.refused,
            "written_and_compared": self.written,
            "wrong": self.count("wrong"),
            "untyped_exceptions": self.count("untyped"),
            "hangs": self.count("hang"),
            "memory_growth": self.grown,
            "slowest": {"case": self.slowest[1], "seconds": round(self.slowest[0], 3)},
            "kinds": {
                kind: {"cases": count, **dict(self.statuses.get(kind, {}))}
                for kind, count in sorted(self.cases.items())
            },
            "files": dict(sorted(self.goods.items())),
            "failures": self.failures,
        }


@dataclass(frozen=True)
class Trials:
    """A set of cases: a case is its kind and its seed, nothing else.

    Attributes:
        kinds: What is tried, in turn.
        run_case: Makes a case in an empty directory, and compares what comes of it.
        name_of: What a failure says of the file that a case is made of.
        show: Prints all about a case; the directory is for its files.
    """

    kinds: Sequence[str]
    run_case: Callable[[str, int, Path], Outcome]
    name_of: Callable[[str, int], str]
    show: Callable[[str, int, Path], None]

    def cases(self, count: int, seed: int) -> Iterator[tuple[str, int]]:
        """``count`` cases, of every kind in turn."""
        names = sorted(self.kinds)
        for number in range(count):
            yield names[number % len(names)], seed + number

    def try_case(self, kind: str, seed: int, directory: Path, tally: Tally, *, say: bool = False) -> None:
        """Run one case and count it, whatever happens."""
        try:
            with time_limit(CASE_SECONDS):
                outcome = self.run_case(kind, seed, directory)
            tally.add(outcome, seed)
            return
        except WrongError as error:
            what, text = "wrong", str(error)
        except HangError as error:
            what, text = "hang", f"{error}\n{traceback.format_exc(limit=-6)}"
        except Exception:
            what, text = "untyped", traceback.format_exc(limit=-6)
        finally:
            for path in directory.iterdir():
                path.unlink()
        tally.cases[kind] += 1
        if say:
            print(f"{what}: --replay {kind}:{seed}: {text}", file=sys.stderr, flush=True)
        tally.failures.append({"case": f"{kind}:{seed}", "good": self.name_of(kind, seed), "what": what, "text": text})

    def run(self, count: int, seed: int, *, workers: int | None = None, say: bool = False) -> Tally:
        """Run many cases in forked workers, and add up what they counted."""
        workers = workers or min(os.cpu_count() or 1, 16)
        started = time.perf_counter()
        tally = Tally()
        with scratch() as directory:
            good_files()
            context = multiprocessing.get_context("fork")
            jobs = []
            for worker in range(workers):
                place = directory / f"worker{worker}"
                place.mkdir()
                arguments = (worker, workers, count, seed, place, say)
                process = context.Process(target=self._work, args=arguments, daemon=True)
                process.start()
                jobs.append((process, place))
            for process, place in jobs:
                _wait(process, place)
                tally.merge(_result(place, process.exitcode))
        tally.seconds = time.perf_counter() - started
        return tally

    def _work(self, worker: int, workers: int, count: int, seed: int, directory: Path, say: bool) -> None:
        torch.set_num_threads(1)
        tally = Tally()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        for number, (kind, case_seed) in enumerate(self.cases(count, seed)):
            if number % workers != worker:
                continue
            directory.with_suffix(".case").write_text(f"{kind}:{case_seed}")
            self.try_case(kind, case_seed, directory, tally, say=say)
            if len(tally.failures) >= MAX_FAILURES:
                break
            if say and worker == 0 and number // workers % 10_000 == 0 and number:
                print(f"{number} cases, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        tally.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if tally.grown > MEMORY_LIMIT:
            text = f"a worker grew by {tally.grown} bytes"
            tally.failures.append({"case": "all", "good": "", "what": "wrong", "text": text})
        directory.with_suffix(".tally").write_bytes(pickle.dumps(tally))

    def replay(self, text: str) -> int:
        """Run one case and show it."""
        kind, _, number = text.rpartition(":")
        with scratch() as directory:
            self.show(kind, int(number), directory)
            place = directory / "replay"
            place.mkdir()
            tally = Tally()
            self.try_case(kind, int(number), place, tally)
            for failure in tally.failures:
                print(failure["what"], failure["text"])
        print("as expected" if not tally.failures else "NOT as expected")
        return bool(tally.failures)

    def main(self, description: str) -> int:
        """The command line."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--cases", type=int, default=20_000, help="how many (default: %(default)s)")
        parser.add_argument("--nightly", action="store_true", help=f"{NIGHTLY} cases")
        parser.add_argument("--seed", type=int, default=1, help="of the first case; each has the next one")
        parser.add_argument("--workers", type=int, help="processes (default: one per CPU)")
        parser.add_argument("--replay", metavar="KIND:SEED", help="run one case and show all of it")
        arguments = parser.parse_args()
        if arguments.replay:
            return self.replay(arguments.replay)
        count = NIGHTLY if arguments.nightly else arguments.cases
        tally = self.run(count, arguments.seed, workers=arguments.workers, say=True)
        print(json.dumps(tally.table(), indent=1))
        print(tally.summary(), file=sys.stderr)
        return 1 if tally.failures else 0


def _wait(process: BaseProcess, place: Path) -> None:
    """Wait until a worker ends, as long as it goes from one case to the next."""
    case, since, last = place.with_suffix(".case"), time.monotonic(), ""
    while process.is_alive():
        process.join(min(STUCK_SECONDS / 10, 5))
        now = case.read_text() if case.exists() else ""
        if now != last:
            since, last = time.monotonic(), now
        elif time.monotonic() - since > STUCK_SECONDS:
            process.kill()


def _result(place: Path, exitcode: int | None) -> Tally:
    """What a worker counted. One that died has left the case at which it did."""
    found = place.with_suffix(".tally")
    if found.exists():
        tally = pickle.loads(found.read_bytes())
        assert isinstance(tally, Tally)
        return tally
    case = place.with_suffix(".case")
    text = f"a worker ended with exit code {exitcode}, and what it counted is lost"
    at = case.read_text() if case.exists() else "none"
    return Tally(failures=[{"case": at, "good": "", "what": "died", "text": text}])


def check(tally: Tally, count: int, program: str) -> None:
    """Nothing wrong, and all of it was done."""
    print(tally.summary())
    shown = "\n\n".join(
        f"{failed['what']}: python {program} --replay {failed['case']}  ({failed['good']})\n{failed['text']}"
        for failed in tally.failures[:10]
    )
    assert not tally.failures, f"{len(tally.failures)} cases failed\n{shown}"
    assert sum(tally.cases.values()) == count


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory for the files, in memory where the system has that."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**28 else None
    with tempfile.TemporaryDirectory(dir=base, prefix="fastckpt-lab-") as name:
        goods = Path(name) / "goods"
        goods.mkdir()
        use_directory(goods)
        yield Path(name)
