"""The damage lab for sealed files: what a seal says of a file that was damaged in any way, with an exact oracle.

From the root of the repository::

    python tests/damage/sealed_lab.py --cases 5000
    python tests/damage/sealed_lab.py --replay sector-zeroed:4711

The oracle compares the damaged file with the one that was sealed, leaf by leaf. So it knows which state a check must
find, which leaves it must name, which tensors must load, and which bytes may be called intact.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goods import Good, flat, good_files, values_of
from makers import KINDS
from trials import Outcome, Trials, WrongError

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import FastckptError, NotACheckpointError
from fastckpt.sealing.check import check
from fastckpt.seals.names import sums_path

_sums: dict[str, bytes] = {}


@dataclass
class Case:
    """One damaged file."""

    good: Good
    damaged: bytes
    name: str

    @classmethod
    def make(cls, kind: str, seed: int) -> Case:
        """The case of a kind and a seed; the same whenever it is made."""
        maker, r = KINDS[kind], random.Random(f"sealed:{kind}:{seed}")
        goods = [good for good in good_files().values() if good.format in maker.formats]
        # Of a file of a few leaves there is little to tell.
        good = r.choices(goods, [min(len(good.raw), 20 * LEAF_SIZE) + LEAF_SIZE for good in goods])[0]
        return cls(good, maker.make(good, r), f"file{good.suffix}")


class Oracle:
    """What is so, from the bytes alone.

    Attributes:
        state: What a check must find.
        bad: The leaves that are not as they were sealed, if the seal is of the file.
        behind: Bytes behind all that was sealed.
    """

    def __init__(self, sealed: bytes, now: bytes) -> None:
        count = -(-len(sealed) // LEAF_SIZE)
        there = [leaf for leaf in range(count) if min((leaf + 1) * LEAF_SIZE, len(sealed)) <= len(now)]
        differ = {leaf for leaf in there if self.leaf(sealed, leaf, sealed) != self.leaf(now, leaf, sealed)}
        self.behind = max(len(now) - len(sealed), 0)
        self.bad = differ | set(range(len(there), count))
        if sealed == now:
            self.state = "OK"
        elif 2 * len(differ) > len(there) or (not there and len(sealed) != len(now)):
            self.state = "stale"
        else:
            self.state = "changed"

    @staticmethod
    def leaf(raw: bytes, number: int, sealed: bytes) -> bytes:
        return raw[number * LEAF_SIZE : min((number + 1) * LEAF_SIZE, len(sealed))]

    def is_good(self, begin: int, end: int) -> bool:
        """Whether all leaves around these bytes are as sealed."""
        return self.bad.isdisjoint(range(begin // LEAF_SIZE, -(-end // LEAF_SIZE)))


def run_case(kind: str, seed: int, directory: Path) -> Outcome:
    """Seal a file, damage it, and compare all that is said with the oracle.

    Raises:
        WrongError: Something untrue was said, written or loaded.
    """
    started = time.perf_counter()
    case = Case.make(kind, seed)
    path = directory / case.name
    _seal(case.good, path)
    path.write_bytes(case.damaged)
    oracle = Oracle(case.good.raw, case.damaged)
    outcome = Outcome(kind, case.good.name, required=oracle.state != "stale")
    outcome.statuses[oracle.state] += 1
    if case.damaged:
        check_verify(case, path, oracle)
        check_loads(case, path, oracle)
        outcome.written = check_salvage(case, path, oracle)
    check_check(path, oracle)
    if path.read_bytes() != case.damaged:
        raise WrongError("the damaged file was changed")
    outcome.seconds = time.perf_counter() - started
    return outcome


def _seal(good: Good, path: Path) -> None:
    beside = Path(sums_path(path))
    if good.name not in _sums:
        path.write_bytes(good.raw)
        fastckpt.seal(path, durable=False, threads=1)
        _sums[good.name] = beside.read_bytes()
    beside.write_bytes(_sums[good.name])


def check_check(path: Path, oracle: Oracle) -> None:
    """`seal --check` finds the state, and names each leaf that differs and no other."""
    found = check(path, threads=1)
    if found.state != oracle.state:
        raise WrongError(f"it is {oracle.state}, and called {found.state}")
    if oracle.state == "changed":
        _check_findings(found.findings, oracle, len(path.read_bytes()))


def _check_findings(findings: Any, oracle: Oracle, size: int) -> None:
    named: set[int] = set()
    for finding in findings:
        if finding.kind.value not in ("changed", "missing") or "lea" not in finding.message[:6]:
            continue
        begin = finding.offset // LEAF_SIZE if finding.offset < size else None
        words = finding.message.split()
        first, last = int(words[1]), int(words[3]) if words[0] == "leaves" else int(words[1])
        if begin is not None and begin != first:
            raise WrongError(f"leaf {first} is not at byte {finding.offset}")
        named |= set(range(first, last + 1))
    if named != oracle.bad:
        raise WrongError(f"leaves {sorted(oracle.bad)} differ, and {sorted(named)} are named")


def check_verify(case: Case, path: Path, oracle: Oracle) -> None:
    """`verify` calls nothing intact that is not as it was sealed; what it says of the seal is so."""
    try:
        report = fastckpt.verify(path, threads=1)
    except NotACheckpointError:
        if oracle.state != "stale":
            raise WrongError("a sealed file is called no checkpoint") from None
        return
    except FastckptError:
        return
    said = {"as sealed": "OK"}.get(str(report.seal), report.seal)
    if said != oracle.state:
        # A file that stands there twice is whole by its own checksums, and is not what was sealed.
        is_twice = case.damaged == 2 * case.good.raw
        if not (report.seal == "stale" and (is_twice or has_leaves_of_a_sibling(case, oracle))):
            raise WrongError(f"it is {oracle.state}, and verify says {report.seal}")
        oracle.state = "stale"
    if oracle.state == "OK" and (not report.ok or report.exit_code):
        raise WrongError("as it was sealed, and not ok")
    if oracle.state != "OK" and (report.ok or report.verdict is not None or not report.exit_code):
        raise WrongError(f"it is {oracle.state}, and called {report.verdict}, exit code {report.exit_code}")
    if oracle.state == "changed" and case.good.format != "fckpt":
        _check_findings(report.findings, oracle, len(case.damaged))


def has_leaves_of_a_sibling(case: Case, oracle: Oracle) -> bool:
    """Whether a .fckpt has whole leaves of another save: its own digests can prove that they were written since."""
    raw, now, other = case.good.raw, case.damaged, case.good.sibling
    same = (oracle.leaf(now, leaf, raw) == oracle.leaf(other, leaf, raw) for leaf in oracle.bad)
    return case.good.format == "fckpt" and any(same)


def check_loads(case: Case, path: Path, oracle: Oracle) -> None:
    """What loads is what was sealed, and all that can be proven loads. A .fckpt goes by its own digests."""
    good = case.good
    if good.format == "fckpt":
        return
    try:
        state = flat(fastckpt.load(path, threads=1, mmap=len(case.damaged) % 2 == 0))
    except FastckptError:
        if oracle.state == "OK":
            raise
        state = {}
    else:
        if len(case.damaged) != len(good.raw):
            raise WrongError("of another size, and it was loaded")
    for name, tensor in state.items():
        if values_of(tensor) != good.tensors[name].values:
            raise WrongError(f"{name!r} was loaded, and is not what was sealed")
    if len(case.damaged) != len(good.raw):
        return
    structure = [place for place in _outside(good) if not oracle.is_good(*place)]
    for name, facts in list(good.tensors.items())[:6]:
        place = good.storages[facts.storage]
        proven = not structure and (place[0] == place[1] or oracle.is_good(*place))
        try:
            (tensor,) = fastckpt.load(path, keys=[name], threads=1).values()
        except FastckptError as error:
            if proven:
                raise WrongError(f"{name!r} stands as it was sealed, and does not load: {error}") from error
            continue
        if not proven:
            raise WrongError(f"{name!r} was loaded, and some of it is not what was sealed")
        if values_of(tensor) != facts.values:
            raise WrongError(f"{name!r} was loaded with other values")


def _outside(good: Good) -> list[tuple[int, int]]:
    """The ranges of a file that are in no storage."""
    ranges, at = [], 0
    for begin, end in sorted(good.storages.values()):
        if at < begin:
            ranges.append((at, begin))
        at = max(at, end)
    return [*ranges, (at, len(good.raw))] if at < len(good.raw) else ranges


def check_salvage(case: Case, path: Path, oracle: Oracle) -> int:
    """`salvage` brings back each tensor in leaves that are as sealed, and calls no other byte intact."""
    good = case.good
    destination = path.with_name("out.fckpt")
    try:
        report = fastckpt.salvage(path, destination, threads=1, durable=False)
    except FastckptError:
        return 0
    written = flat(fastckpt.load(destination)) if destination.exists() else {}
    if destination.exists():
        destination.unlink()
    # By a CRC-32 of its own, or a digest, what another save brought along can be proven, too.
    own = good.format in ("fckpt", "pt")
    if oracle.state == "stale" or own:
        return 0 if own else _stale_is_not_proven(report, good)
    structure = all(
        oracle.is_good(begin, min(end, len(case.damaged))) for begin, end in _outside(good) if begin < len(case.damaged)
    )
    for name, facts in good.tensors.items():
        place = good.storages[facts.storage]
        proven = structure and oracle.is_good(*place) and place[1] <= len(case.damaged)
        fate = report.tensors.get(name)
        if proven and (fate is None or fate.status.value != "intact") and facts.values:
            raise WrongError(f"{name!r} is as it was sealed, and called {fate.status.value if fate else 'nothing'}")
        if fate is not None and fate.status.value == "intact" and facts.values and not _stands(case, facts):
            raise WrongError(f"{name!r} is called intact, and is not what was sealed")
        if fate is not None and fate.rows_intact and facts.plain:
            _check_rows(case, name, fate.rows_intact)
    for name, tensor in written.items():
        if name in good.tensors and values_of(tensor) != good.tensors[name].values:
            raise WrongError(f"{name!r} was written with other values")
    return len(written)


def _stale_is_not_proven(report: Any, good: Good) -> int:
    if report.format == "torch-zip":
        return 0  # A checkpoint inside of a tensor, which has checksums.
    if any(fate.status.value == "intact" and fate.nbytes for fate in report.tensors.values()):
        raise WrongError(f"of a stale {good.format} something is called intact")
    return 0


def _stands(case: Case, facts: Any) -> bool:
    """Whether the bytes that a tensor reaches in its storage are those that were sealed."""
    storage, _ = case.good.storages[facts.storage]
    begin, end = (storage + byte for byte in facts.span)
    return case.damaged[begin:end] == case.good.raw[begin:end]


def _check_rows(case: Case, name: str, rows: list[tuple[int, int]]) -> None:
    facts = case.good.tensors[name]
    begin = case.good.storages[facts.storage][0] + facts.span[0]
    width = len(facts.values) // facts.shape[0]
    for first, last in rows:
        if case.damaged[begin + first * width : begin + last * width] != facts.values[first * width : last * width]:
            raise WrongError(f"{name!r}: rows {first} to {last} are called intact, and are not what was sealed")


def _show(kind: str, seed: int, directory: Path) -> None:
    case = Case.make(kind, seed)
    path = directory / case.name
    _seal(case.good, path)
    path.write_bytes(case.damaged)
    oracle = Oracle(case.good.raw, case.damaged)
    print(f"{kind}:{seed} on {case.good.name}: {len(case.good.raw)} -> {len(case.damaged)} bytes")
    print(f"oracle: {oracle.state}, leaves {sorted(oracle.bad)}")
    print(check(path))
    try:
        print(fastckpt.verify(path, threads=1))
    except FastckptError as error:
        print(repr(error))


TRIALS = Trials(list(KINDS), run_case, lambda kind, seed: Case.make(kind, seed).good.name, _show)

if __name__ == "__main__":
    sys.exit(TRIALS.main("damage sealed files in every way and check what their seals say"))
