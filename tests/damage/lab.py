"""The damage lab: good files, every kind of damage at seeded places, and an oracle for what must come back.

From the root of the repository::

    python tests/damage/lab.py --cases 20000 --seed 1       counts by kind, as JSON
    python tests/damage/lab.py --nightly                    1,000,000 cases
    python tests/damage/lab.py --replay sector-zeroed:4711  one case, with all that salvage says about it

A case is its kind of damage and its seed, nothing else: a failure prints both.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from goods import Facts, Good, flat, good_files, values_of
from makers import KINDS, PAGE
from oracle import ANY, INTACT, PARTIAL, UNVERIFIED, Expected, Oracle, Verdict
from trials import Outcome, Trials, WrongError

import fastckpt
from fastckpt.errors import FastckptError
from fastckpt.findings import Report

SALVAGE = hasattr(fastckpt, "salvage")
FILL_BYTE = 0


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
    """
    started = time.perf_counter()
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
    outcome.seconds = time.perf_counter() - started
    return outcome


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
    first = _first_archive(case, report)
    _check_statuses(case, first, expected)
    _check_conclusion(case, report, destination)
    if destination is not None and report.destination is not None:
        back = _read_back(destination)
        if first is not report:
            back = {name.partition(".")[2]: tensor for name, tensor in back.items() if name.startswith("0.")}
        _check_written(case, first, expected, back)
    return report


def _first_archive(case: Case, report: Any) -> Any:
    """Of several archives in a row what is said of the first one; the tensors of the others are checked here."""
    if case.good.format != "pt" or not report.tensors or not all(name[:2] in ("0.", "1.") for name in report.tensors):
        return report
    for name, fate in report.tensors.items():
        if name.startswith("1.") and fate.status.value == INTACT and fate.offset is not None:
            facts = case.good.tensors.get(name[2:])
            there = case.damaged[fate.offset : fate.offset + fate.nbytes]
            if facts is None:
                _check_stranger(case, fate)
            elif facts.plain and there not in (facts.values, case.good.sibling_values[name[2:]]):
                raise WrongError(f"{name!r} is called intact, and at byte {fate.offset} stands something else")
    tensors = {n[2:]: replace(fate, name=n[2:]) for n, fate in report.tensors.items() if n.startswith("0.")}
    written = [name[2:] for name in report.written if name.startswith("0.")]
    backfilled = {name[2:]: path for name, path in report.backfilled.items() if name.startswith("0.")}
    return replace(report, tensors=tensors, written=written, backfilled=backfilled)


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
        _check_fate(case, fate, verdict, expected)
    for name in sorted(expected.named) if case.like else ():
        fate = report.tensors.get(name)
        if fate is None or fate.status.value not in (INTACT, UNVERIFIED):
            said = f"called {fate.status.value} ({fate.reason})" if fate else "not listed"
            raise WrongError(f"{name!r} is {said}, and stands with its header and CRC; its name is in the other file")
    for name, fate in report.tensors.items():
        if name not in good.tensors and fate.status.value == INTACT and fate.nbytes:
            _check_stranger(case, fate)


def _check_fate(case: Case, fate: Any, verdict: Verdict, expected: Expected) -> None:
    facts = case.good.tensors[fate.name]
    exact = expected.structure or fate.status.value == INTACT
    if exact and (fate.dtype, tuple(fate.shape)) != (facts.dtype, facts.shape):
        raise WrongError(f"{fate.name!r} is said to be {fate.dtype} {fate.shape}, not {facts.dtype} {facts.shape}")
    if exact and fate.nbytes != len(facts.values):
        raise WrongError(f"{fate.name!r} is said to have {fate.nbytes} bytes")
    if not 0 <= fate.present <= fate.nbytes:
        raise WrongError(f"{fate.name!r} is said to have {fate.present} of {fate.nbytes} bytes")
    if fate.status.value == INTACT and fate.offset is not None and facts.plain:
        there = case.damaged[fate.offset : fate.offset + fate.nbytes]
        if there not in _true_values(case, expected, facts, fate.name):
            raise WrongError(f"{fate.name!r} is called intact, and at byte {fate.offset} stands something else")
    if fate.rows_intact is not None and verdict.good_rows is not None:
        rows = tuple((first, end) for first, end in fate.rows_intact)
        encoded = case.good.format == "fckpt" and fate.offset is None
        # Of a chunk that is cut, encoded or not, nothing has to come back where its neighbours are encoded.
        if rows != verdict.good_rows and not (encoded and _covers(verdict.good_rows, rows)):
            raise WrongError(f"{fate.name!r}: rows {rows} are called intact, and these are: {verdict.good_rows}")


def _covers(outer: tuple[tuple[int, int], ...], inner: tuple[tuple[int, int], ...]) -> bool:
    return all(any(a <= first and end <= b for a, b in outer) for first, end in inner)


def _true_values(case: Case, expected: Expected, facts: Facts, name: str) -> tuple[bytes, ...]:
    """What may be called intact: the original or, where parts of a sibling were mixed in, that of the sibling."""
    mixed = ("sibling" in case.kind or case.kind == "twice") and not expected.one_save
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
        # A .pt has no place for the metadata, which all have but those converted from one.
        has_metadata = case.good.format in ("fckpt", "safetensors") and not case.good.name.endswith(" source")
        is_all = not (has_metadata and (case.destination or "").endswith(".pt"))
        if report.exit_code != 0 or broken or report.complete != is_all:
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
        tensors = safetensors.torch.load_file(destination)
        with safetensors.safe_open(destination, "pt") as file:
            texts = file.metadata() or {}
        # Tied ones are written once; the metadata has their other names.
        return tensors | {name: tensors[kept] for name, kept in texts.items() if kept in tensors}
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
            if facts is not None and values not in _true_values(case, expected, facts, name):
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


def show_report(report: Any) -> None:
    """What salvage says of a file as a whole."""
    print(f"structure {report.structure}, exit code {report.exit_code}, complete {report.complete}")
    for finding in report.findings:
        print(f"  finding: {finding.kind.value} {finding.offset}+{finding.size}: {finding.message}")
    for note in report.notes:
        print(f"  note: {note}")


def _show(kind: str, seed: int, directory: Path) -> None:
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
        show_report(report)
        for name in dict.fromkeys((*case.good.tensors, *report.tensors)):
            fate = report.tensors.get(name)
            verdict = expected.verdicts.get(name)
            said = f"{fate.status.value} at {fate.offset} ({fate.reason})" if fate else "not listed"
            print(f"  {name}: {said}; allowed: {sorted(verdict.allowed) if verdict else 'not in the file'}")


TRIALS = Trials(list(KINDS), run_case, lambda kind, seed: Case.make(kind, seed).good.name, _show)

if __name__ == "__main__":
    sys.exit(TRIALS.main("damage good files in every way and check what salvage makes of them"))
