"""The damage lab: good files, every kind of damage at seeded places, and an oracle for what must come back.

From the root of the repository::

    python tests/damage/lab.py --cases 20000 --seed 1       counts by kind, as JSON
    python tests/damage/lab.py --nightly                    1,000,000 cases
    python tests/damage/lab.py --replay sector-zeroed:4711  one case, with all that salvage says about it

A case is its kind of damage and its seed, nothing else: a failure prints both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from goods import Facts, Good, flat, good_files, use_directory, values_of
from makers import KINDS, PAGE
from oracle import ANY, INTACT, LOST, PARTIAL, UNVERIFIED, Expected, Oracle, Verdict

import fastckpt
from fastckpt.errors import FastckptError
from fastckpt.findings import Report

SALVAGE = hasattr(fastckpt, "salvage")
CASE_SECONDS = 10
"""A case that takes longer hangs."""
MEMORY_LIMIT = 300 * 2**20
"""By how much a worker may grow over all its cases, in bytes."""
NIGHTLY = 1_000_000
FILL_BYTE = 0


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


@dataclass
class Case:
    """One damaged file and all that is asked of it."""

    kind: str
    seed: int
    good: Good
    damaged: bytes
    destination: str | None
    include: tuple[str, ...]
    like: bool = False
    backfill: bool = False

    @classmethod
    def make(cls, kind: str, seed: int) -> Case:
        """The case of a kind and a seed; the same whenever it is made."""
        maker = KINDS[kind]
        r = random.Random(f"{kind}:{seed}")
        goods = [good for good in good_files().values() if good.format in maker.formats]
        # Layouts without a witness have no more to say than the others of their format: each format gets its share.
        formats = sorted({good.format for good in goods})
        weights = [{"pt": 4, "fckpt": 4}.get(name, 1) for name in formats]
        chosen = r.choices(formats, weights)[0]
        good = r.choice([good for good in goods if good.format == chosen])
        damaged = maker.make(good, r)
        suffix = r.choices((None, ".fckpt", ".safetensors", ".pt"), (2, 5, 1, 1))[0]
        include = r.choices(((), ("unverified",), ("unverified", "partial", "damaged")), (2, 1, 2))[0]
        if good.format in ("legacy", "safetensors"):
            include = r.choice((("unverified",), ("unverified", "partial", "damaged")))
        like, backfill = r.random() < 0.25, r.random() < 0.15
        return cls(kind, seed, good, damaged, suffix and f"out{suffix}", include, like, backfill)

    @property
    def options(self) -> dict[str, Any]:
        """For `fastckpt.salvage`."""
        sibling = self.good.sibling_path if self.like or self.backfill else None
        return {
            "include": self.include,
            "fill": "zeros",
            "like": sibling if self.like else None,
            "backfill": sibling if self.backfill else None,
            "threads": 1,
        }


# --- one case --------------------------------------------------------------------


def run_case(kind: str, seed: int, directory: Path) -> Outcome:
    """Damage a file, salvage it, and compare with the oracle.

    Raises:
        WrongError: Something untrue was said or written.
        HangError: It took more than `CASE_SECONDS`.
    """
    started = time.perf_counter()
    with _time_limit(CASE_SECONDS):
        case = Case.make(kind, seed)
        source = directory / f"damaged{case.good.suffix}"
        source.write_bytes(case.damaged)
        expected = Oracle(case.good, case.damaged).expect()
        outcome = Outcome(kind, case.good.name, required=sum(v.required for v in expected.verdicts.values()))
        check_verify(case, source)
        if seed % 4 == 0:
            check_load(case, source)
        destination = directory / case.destination if case.destination else None
        report = check_salvage(case, source, destination, expected) if SALVAGE else None
        if report is None:
            outcome.refused = True
        else:
            outcome.statuses.update(fate.status.value for fate in report.tensors.values())
            outcome.written = len(report.written) if destination is not None else 0
        if source.read_bytes() != case.damaged:
            raise WrongError("the damaged file was changed")
        leftover = {path.name for path in directory.iterdir()} - {source.name}
        if leftover - ({destination.name} if destination and report and report.destination else set()):
            raise WrongError(f"files were left behind: {sorted(leftover)}")
    for path in directory.iterdir():
        path.unlink()
    outcome.seconds = time.perf_counter() - started
    return outcome


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise HangError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_verify(case: Case, source: Path) -> None:
    """`fastckpt.verify` ends in a report or a typed error, and does not call changed bytes intact."""
    try:
        report: Report = fastckpt.verify(source, threads=1)
    except FastckptError:
        return
    if report.ok and case.good.format == "fckpt" and case.damaged != case.good.raw != case.good.sibling != case.damaged:
        raise WrongError("verify finds nothing")
    json.dumps(report.as_dict())


def check_load(case: Case, source: Path) -> None:
    """`fastckpt.load` gives exactly the state that was saved, or a typed error."""
    if case.good.format != "fckpt":
        return
    try:
        state = flat(fastckpt.load(source, threads=1, mmap=case.seed % 8 == 0))
    except FastckptError:
        return
    for values in (_originals(case.good), case.good.sibling_values):
        if all(values_of(tensor) == values[name] for name, tensor in state.items()):
            return
    raise WrongError("load gives other tensors than were saved")


def _originals(good: Good) -> dict[str, bytes]:
    return {name: facts.values for name, facts in good.tensors.items()}


def check_salvage(case: Case, source: Path, destination: Path | None, expected: Expected) -> Any:
    """`fastckpt.salvage` against the oracle; the report, or None if it refused with a typed error."""
    try:
        report = fastckpt.salvage(source, destination, **case.options)
    except FastckptError as error:
        if not expected.may_refuse:
            raise WrongError(f"salvage refuses: {type(error).__name__}: {error}") from error
        if destination is not None and destination.exists():
            raise WrongError("salvage refuses, and has written a file") from error
        return None
    json.dumps(report.as_dict())
    _check_statuses(case, report, expected)
    _check_conclusion(case, report, destination)
    if destination is not None and report.destination is not None:
        _check_written(case, report, expected, _read_back(destination))
    return report


def _check_statuses(case: Case, report: Any, expected: Expected) -> None:
    good = case.good
    if expected.structure:
        missing = good.tensors.keys() - report.tensors.keys()
        if missing or len(report.tensors) != len(good.tensors):
            strangers = sorted(report.tensors.keys() - good.tensors.keys())
            raise WrongError(f"the structure stands, but {sorted(missing)} are not listed; {strangers} are new")
    for name, verdict in expected.verdicts.items():
        fate = report.tensors.get(name)
        if fate is None:
            if verdict.required:
                raise WrongError(f"{name!r} is not listed, but its bytes and a witness stand")
            continue
        # Its bytes can have moved, or stand twice; what is called intact is compared where it was found.
        found = fate.status.value == INTACT and fate.offset is not None and good.tensors[name].plain
        if fate.status.value not in verdict.allowed and not found:
            raise WrongError(
                f"{name!r} is called {fate.status.value} ({fate.reason}), not {' or '.join(sorted(verdict.allowed))}"
            )
        _check_fate(case, fate, verdict, exact=expected.structure or fate.status.value == INTACT)
    for name in sorted(expected.named) if case.like else ():
        fate = report.tensors.get(name)
        if fate is None or fate.status.value not in (INTACT, UNVERIFIED):
            said = f"called {fate.status.value} ({fate.reason})" if fate else "not listed"
            raise WrongError(f"{name!r} is {said}, and stands with its header and CRC; its name is in the other file")
    for name, fate in report.tensors.items():
        if name not in good.tensors and fate.status.value == INTACT and fate.nbytes:
            _check_stranger(case, fate)


def _check_fate(case: Case, fate: Any, verdict: Verdict, *, exact: bool) -> None:
    facts = case.good.tensors[fate.name]
    if exact and (fate.dtype, tuple(fate.shape)) != (facts.dtype, facts.shape):
        raise WrongError(f"{fate.name!r} is said to be {fate.dtype} {fate.shape}, not {facts.dtype} {facts.shape}")
    if exact and fate.nbytes != len(facts.values):
        raise WrongError(f"{fate.name!r} is said to have {fate.nbytes} bytes")
    if not 0 <= fate.present <= fate.nbytes:
        raise WrongError(f"{fate.name!r} is said to have {fate.present} of {fate.nbytes} bytes")
    if fate.status.value == INTACT and fate.offset is not None and facts.plain:
        there = case.damaged[fate.offset : fate.offset + fate.nbytes]
        if there not in _true_values(case, facts, fate.name):
            raise WrongError(f"{fate.name!r} is called intact, and at byte {fate.offset} stands something else")
    if fate.rows_intact is not None and verdict.good_rows is not None:
        rows = tuple((first, end) for first, end in fate.rows_intact)
        encoded = case.good.format == "fckpt" and fate.offset is None
        # Of a chunk that is cut, encoded or not, nothing has to come back where its neighbours are encoded.
        if rows != verdict.good_rows and not (encoded and _covers(verdict.good_rows, rows)):
            raise WrongError(f"{fate.name!r}: rows {rows} are called intact, and these are: {verdict.good_rows}")


def _covers(outer: tuple[tuple[int, int], ...], inner: tuple[tuple[int, int], ...]) -> bool:
    return all(any(a <= first and end <= b for a, b in outer) for first, end in inner)


def _true_values(case: Case, facts: Facts, name: str) -> tuple[bytes, ...]:
    """What may be called intact: the original or, where parts of a sibling were mixed in, that of the sibling."""
    mixed = "sibling" in case.kind or case.kind == "twice"
    return (facts.values, case.good.sibling_values[name]) if mixed else (facts.values,)


def _check_stranger(case: Case, fate: Any) -> None:
    """Something is called intact under a name that the file never had: it must be a whole storage."""
    if fate.offset is None:
        raise WrongError(f"{fate.name!r} is called intact, but there never was such a tensor")
    there = case.damaged[fate.offset : fate.offset + fate.nbytes]
    good = case.good
    for raw in (good.raw, good.sibling):
        if any(raw[start:end] == there for start, end in good.storages.values()):
            return
        if "inner" in good.name and there in raw:
            # A record of a checkpoint inside of a tensor: with nothing of the outer one left, it is as good as any.
            return
    raise WrongError(f"{fate.name!r} is called intact, but there never was such a tensor")


def _check_conclusion(case: Case, report: Any, destination: Path | None) -> None:
    counts = Counter(fate.status.value for fate in report.tensors.values())
    if {name: number for name, number in report.counts.items() if number} != dict(counts):
        raise WrongError(f"counts are {report.counts}")
    if report.exit_code not in (0, 1, 2, 3, 4):
        raise WrongError(f"exit code {report.exit_code}")
    there = (INTACT, UNVERIFIED)
    broken = sum(f.status.value not in there and n not in report.backfilled for n, f in report.tensors.items())
    if broken and report.exit_code in (0, 1):
        raise WrongError(f"exit code {report.exit_code}, but {broken} tensors did not come back")
    whole_kind = case.good.crcs or UNVERIFIED in case.include
    if case.kind == "nothing" and whole_kind and not (case.destination or "").endswith(".safetensors"):
        if report.exit_code != 0 or broken or not report.complete:
            raise WrongError(f"a whole file: exit code {report.exit_code}, {dict(counts)}, complete {report.complete}")
        if any(finding.loss for finding in report.findings):
            raise WrongError("a whole file has findings of loss")
    if broken and report.complete and not set(case.include) & {"partial", "damaged"}:
        raise WrongError("called complete, and some tensors did not come back")
    if destination is not None and bool(report.destination) != destination.exists():
        raise WrongError(
            f"destination is {report.destination}, and the file does{'' if destination.exists() else ' not'} exist"
        )
    wanted = {INTACT, *case.include}
    expected = {name for name, fate in report.tensors.items() if fate.status.value in wanted}
    if not set(report.written) <= expected | set(report.backfilled):
        raise WrongError(f"written: {sorted(set(report.written) - expected)}")
    if report.backfilled and not case.backfill:
        raise WrongError("tensors are said to be from another file")
    if case.destination and not case.destination.endswith(".safetensors"):
        missing = {name for name in expected - set(report.written) if report.tensors[name].status.value == INTACT}
        # Half of an optimizer's entry is of no use: see the notes of the report.
        if missing and "optimizer" not in case.good.name:
            raise WrongError(f"intact, and not written: {sorted(missing)}")


def _read_back(destination: Path) -> Mapping[str, torch.Tensor]:
    if destination.suffix == ".safetensors":
        return safetensors.torch.load(destination.read_bytes())
    if destination.suffix == ".pt":
        return flat(torch.load(destination, weights_only=True))
    with fastckpt.open(destination) as ck:
        return {name: ck[name] for name in ck}


def _check_written(case: Case, report: Any, expected: Expected, back: Mapping[str, torch.Tensor]) -> None:
    """What was written: intact tensors as they were, unverified ones as they stand in the file."""
    missing = set(report.written) - back.keys()
    if missing or len(back) != len(report.written):
        raise WrongError(f"written: {sorted(report.written)}; in the file: {sorted(back)}")
    saves = set()
    for name in report.written:
        facts, fate, tensor = case.good.tensors.get(name), report.tensors[name], back[name]
        if (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) != (fate.dtype, tuple(fate.shape)):
            raise WrongError(
                f"{name!r} was written as {tensor.dtype} {tuple(tensor.shape)}, not {fate.dtype} {fate.shape}"
            )
        values, verdict = values_of(tensor), expected.verdicts.get(name, Verdict(ANY))
        if name in report.backfilled:
            if values != case.good.sibling_values[name]:
                raise WrongError(f"{name!r} was to be taken from the other file, and is something else")
        elif fate.status.value == INTACT:
            if facts is not None and values not in _true_values(case, facts, name):
                raise WrongError(f"{name!r} is called intact, and other bytes were written")
            if facts is not None and facts.values != case.good.sibling_values.get(name):
                saves.add(values == facts.values)
        elif fate.status.value == UNVERIFIED and verdict.now is not None and expected.structure:
            # Where bytes were put in or taken out, headers tell where it stands now.
            moved = len(case.damaged) != len(case.good.raw) and fate.offset is not None
            there = case.damaged[fate.offset :][: fate.nbytes] if moved else verdict.now
            # Its own bytes are never wrong: a sector that stands in another place has them with header and descriptor.
            if values != there and (facts is None or values != facts.values):
                raise WrongError(f"{name!r} was written with other bytes than stand at byte {verdict.place}")
        elif fate.status.value == PARTIAL and verdict.place is not None and expected.structure and facts is not None:
            _check_partial(case, fate, facts, values)
    if len(saves) == 2 and (report.exit_code == 0 or not report.findings):
        raise WrongError("tensors of two saves are mixed, and nothing is said about it")


def _check_partial(case: Case, fate: Any, facts: Facts, values: bytes) -> None:
    """The beginning as it stands in the file, then only the fill."""
    if not facts.plain or case.good.format == "fckpt" or fate.offset is None:
        return
    there = case.damaged[fate.offset :][: fate.present]
    if values != there.ljust(len(values), bytes((FILL_BYTE,))):
        raise WrongError(f"{fate.name!r} is partial, and was not written as {fate.present} bytes and zeros")


# --- many cases ------------------------------------------------------------------


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


def cases(count: int, seed: int) -> Iterator[tuple[str, int]]:
    """``count`` cases, of every kind in turn."""
    names = sorted(KINDS)
    for number in range(count):
        yield names[number % len(names)], seed + number


def try_case(kind: str, seed: int, directory: Path, tally: Tally, *, say: bool = False) -> None:
    """Run one case and count it, whatever happens."""
    try:
        tally.add(run_case(kind, seed, directory), seed)
        return
    except WrongError as error:
        what, text = "wrong", str(error)
    except HangError as error:
        what, text = "hang", f"{error}\n{traceback.format_exc(limit=-6)}"
    except Exception:
        what, text = "untyped", traceback.format_exc(limit=-6)
    tally.cases[kind] += 1
    if say:
        print(f"{what}: --replay {kind}:{seed}: {text}", file=sys.stderr, flush=True)
    good = Case.make(kind, seed).good.name
    tally.failures.append({"case": f"{kind}:{seed}", "good": good, "what": what, "text": text})
    for path in directory.iterdir():
        path.unlink()


MAX_FAILURES = 500
"""From this many on, a worker stops."""


def run(count: int, seed: int, *, workers: int | None = None, say: bool = False) -> Tally:
    """Run many cases in forked workers, and add up what they counted."""
    workers = workers or min(os.cpu_count() or 1, 16)
    started = time.perf_counter()
    with scratch() as directory:
        good_files()
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        processes = []
        for worker in range(workers):
            place = directory / f"worker{worker}"
            place.mkdir()
            processes.append(context.Process(target=_work, args=(worker, workers, count, seed, place, queue, say)))
        for process in processes:
            process.start()
        tally = Tally()
        for _ in processes:
            tally.merge(queue.get())
        for process in processes:
            process.join()
    tally.seconds = time.perf_counter() - started
    return tally


def _work(worker: int, workers: int, count: int, seed: int, directory: Path, queue: Any, say: bool) -> None:
    torch.set_num_threads(1)
    tally = Tally()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    for number, (kind, case_seed) in enumerate(cases(count, seed)):
        if number % workers != worker:
            continue
        try_case(kind, case_seed, directory, tally, say=say)
        if len(tally.failures) >= MAX_FAILURES:
            break
        if say and worker == 0 and number // workers % 10_000 == 0 and number:
            print(f"{number} cases, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    tally.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if tally.grown > MEMORY_LIMIT:
        text = f"a worker grew by {tally.grown} bytes"
        tally.failures.append({"case": "all", "good": "", "what": "wrong", "text": text})
    queue.put(tally)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory for the files, in memory where the system has that."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**28 else None
    with tempfile.TemporaryDirectory(dir=base, prefix="fastckpt-lab-") as name:
        goods = Path(name) / "goods"
        goods.mkdir()
        use_directory(goods)
        yield Path(name)


def replay(text: str) -> int:
    """Run one case and show it."""
    kind, _, number = text.rpartition(":")
    seed = int(number)
    with scratch() as directory:
        case = Case.make(kind, seed)
        raw, damaged = case.good.raw, case.damaged
        changed = [at for at in range(0, len(raw), PAGE) if raw[at : at + PAGE] != damaged[at : at + PAGE]]
        print(f"{case.good.name}: {len(raw)} bytes, now {len(damaged)}; pages that differ: {changed[:20]}")
        print(f"destination {case.destination}, {case.options}")
        expected = Oracle(case.good, damaged).expect()
        print(f"structure stands: {expected.structure}; may refuse: {expected.may_refuse}")
        for name, place in sorted(case.good.regions.items(), key=lambda item: item[1]):
            if raw[slice(*place)] != damaged[slice(*place)]:
                print(f"  touched: {name} {place}")
        path = directory / f"replayed{case.good.suffix}"
        path.write_bytes(damaged)
        with contextlib.suppress(FastckptError):
            report = fastckpt.salvage(path, **case.options)
            print(f"structure {report.structure}, exit code {report.exit_code}, complete {report.complete}")
            for finding in report.findings:
                print(f"  finding: {finding.kind.value} {finding.offset}+{finding.size}: {finding.message}")
            for note in report.notes:
                print(f"  note: {note}")
            for name in dict.fromkeys((*case.good.tensors, *report.tensors)):
                fate = report.tensors.get(name)
                verdict = expected.verdicts.get(name)
                said = f"{fate.status.value} at {fate.offset} ({fate.reason})" if fate else "not listed"
                print(f"  {name}: {said}; allowed: {sorted(verdict.allowed) if verdict else 'not in the file'}")
        place = directory / "replay"
        place.mkdir()
        tally = Tally()
        try_case(kind, seed, place, tally)
        for failure in tally.failures:
            print(failure["what"], failure["text"])
    print("as expected" if not tally.failures else "NOT as expected")
    return bool(tally.failures)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="damage good files in every way and check what salvage makes of them")
    parser.add_argument("--cases", type=int, default=20_000, help="how many (default: %(default)s)")
    parser.add_argument("--nightly", action="store_true", help=f"{NIGHTLY} cases")
    parser.add_argument("--seed", type=int, default=1, help="of the first case; each has the next one")
    parser.add_argument("--workers", type=int, help="processes (default: one per CPU)")
    parser.add_argument("--replay", metavar="KIND:SEED", help="run one case and show all of it")
    arguments = parser.parse_args()
    if arguments.replay:
        return replay(arguments.replay)
    count = NIGHTLY if arguments.nightly else arguments.cases
    tally = run(count, arguments.seed, workers=arguments.workers, say=True)
    print(json.dumps(tally.table(), indent=1))
    print(tally.summary(), file=sys.stderr)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
