"""Convert, damage and restore a checkpoint, and show that every bit comes back.

Without DIR a checkpoint with nanochat's structure and random weights is made;
with it, the newest step of that nanochat checkpoint directory is taken, which
is only read. All work is done in a temporary directory (TMPDIR says where).
The exit code is 0 only if everything was equal.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

from fastckpt.cli.render import Output, Styled, columns
from fastckpt.errors import DamagedError, NotACheckpointError, OutOfSpaceError, UsageError
from fastckpt.needs import needs_torch
from fastckpt.text import count_text, duration_text, rate_text, size_text

T = TypeVar("T")

_ROUNDS = 3
_COPIES = 4
"""The files, their .fckpt, the way back and a damaged copy lie in the temporary directory at a time."""

EXAMPLES: Final = (
    "fastckpt demo --depth 1",
    "fastckpt demo base_checkpoints/d4                  # of .pt files there, which stay as they are",
)


DemoCheckpoint = TypedDict("DemoCheckpoint", {"from": str, "files": list[str], "size": int})


class DemoCheck(TypedDict):
    what: str
    ok: bool


class DemoTiming(TypedDict):
    what: str
    seconds: float
    bytes_per_second: float


class DemoDocument(TypedDict):
    checkpoint: DemoCheckpoint
    checks: list[DemoCheck]
    timings: list[DemoTiming]
    ok: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt demo``."""
    parser.add_argument("directory", nargs="?", metavar="DIR", help="a nanochat checkpoint directory")
    parser.add_argument(
        "--depth", type=int, default=6, metavar="N", help="layers of the made model (default 6: 0.5 GB)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the temporary directory")


def run(args: argparse.Namespace, out: Output) -> int:
    """Run the demonstration; 0 if everything was equal, else 2."""
    if not 1 <= args.depth <= 64:
        raise UsageError("the depth must be from 1 to 64", actual=args.depth)
    with needs_torch("the demonstration"):
        import torch  # noqa: F401  (before anything is written)
    work = Path(tempfile.mkdtemp(prefix="fastckpt-demo-"))
    try:
        return _Demo(work, out).run(args.directory, args.depth)
    finally:
        if args.keep:
            out.note(f"kept {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


class _Demo:
    """One demonstration: its facts, and where it works."""

    def __init__(self, work: Path, out: Output) -> None:
        self.work = work
        self.out = out
        self.checks: list[DemoCheck] = []
        self.timings: list[DemoTiming] = []

    def run(self, directory: str | None, depth: int) -> int:
        out = self.out
        sources = self.sources(directory, depth)
        total = sum(path.stat().st_size for path in sources)
        made = f"made, depth {depth}" if directory is None else directory
        checkpoint: DemoCheckpoint = {"from": made, "files": [path.name for path in sources], "size": total}
        out.show(checkpoint, _checkpoint_lines)
        converted = self.convert(sources, total)
        self.load(sources, converted, total)
        self.damage(sources[0], converted[0])
        self.convert_back(sources, converted, total)
        ok = all(check["ok"] for check in self.checks)
        facts: DemoDocument = {"checkpoint": checkpoint, "checks": self.checks, "timings": self.timings, "ok": ok}
        out.show(facts, _table_lines)
        out.document(facts)
        return 0 if ok else 2

    def sources(self, directory: str | None, depth: int) -> list[Path]:
        """The .pt files to work on, the model first. Raises OutOfSpaceError before anything large is written."""
        if directory is None:
            from fastckpt.cli.demo_checkpoint import estimate, write_checkpoint

            self.need(_COPIES * estimate(depth))
            self.out.note("making a checkpoint with random weights")
            made = self.work / "checkpoint"
            made.mkdir()
            return write_checkpoint(made, depth=depth)
        from fastckpt.nanochat.steps import choose_steps

        newest = choose_steps(directory, None, command="fastckpt demo {}")[-1]
        files = [Path(by_suffix["pt"]) for by_suffix in newest.states.values() if "pt" in by_suffix]
        if not files:
            raise NotACheckpointError(f"step {newest.number} has no .pt files", path=directory)
        self.need((_COPIES - 1) * sum(path.stat().st_size for path in files))
        return sorted(files, key=lambda path: not path.name.startswith("model"))

    def need(self, size: int) -> None:
        free = shutil.disk_usage(self.work).free
        if free < size:
            raise OutOfSpaceError(
                "there is not enough space for the demonstration",
                path=self.work,
                expected=size_text(size),
                actual=f"{size_text(free)} free",
                next_step="set TMPDIR to a directory with more space, or choose a smaller --depth",
            )

    def check(self, what: str, *, ok: bool) -> None:
        fact: DemoCheck = {"what": what, "ok": ok}
        self.checks.append(fact)
        self.out.show(fact, _check_lines)

    def time(self, what: str, size: int, work: Callable[[], T]) -> T:
        """Do ``work`` three times, keep the median time, return the last result."""
        seconds = []
        for _ in range(_ROUNDS):
            result: T | None = None  # Freed before the next round, as a program that loads once would have it.
            start = time.perf_counter()
            result = work()
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        self.timings.append({"what": what, "seconds": median, "bytes_per_second": size / max(median, 1e-9)})
        assert result is not None
        return result

    def convert(self, sources: list[Path], total: int) -> list[Path]:
        import fastckpt

        targets = [self.work / path.with_suffix(".fckpt").name for path in sources]
        pairs = list(zip(sources, targets, strict=True))
        done = self.time("convert .pt to .fckpt, durable", total, lambda: [fastckpt.convert(a, b)[0] for a, b in pairs])
        tensors = sum(conversion.tensors for conversion in done)
        by_crc = "each checked by its CRC" if all(c.source_verified for c in done) else "the source has no CRCs"
        self.check(f"converted {count_text(tensors, 'tensor')}, {by_crc}", ok=True)
        for path in targets:
            warm(path)  # What is written past the page cache would be read from the disk each time.
        reports = self.time("fastckpt verify", total, lambda: [fastckpt.verify(path) for path in targets])
        self.check("every byte of the .fckpt files verified", ok=all(report.ok for report in reports))
        return targets

    def load(self, sources: list[Path], converted: list[Path], total: int) -> None:
        import torch

        import fastckpt

        load_torch = self.time("torch.load (verifies nothing)", total, lambda: [torch.load(p) for p in sources])
        loaded = self.time("fastckpt.load, verified", total, lambda: [fastckpt.load(p) for p in converted])
        self.check("fastckpt.load gives what torch.load gives, bit for bit", ok=same(load_torch, loaded))
        del loaded
        mapped = self.time(
            "fastckpt.load(mmap=True), verified", total, lambda: [fastckpt.load(p, mmap=True) for p in converted]
        )
        self.check("so does fastckpt.load(mmap=True)", ok=same(load_torch, mapped))

    def damage(self, source: Path, converted: Path) -> None:
        """Flip one bit of the same tensor in copies of both files."""
        import torch

        import fastckpt
        from fastckpt.stored.inspection import inspect_file

        inspected = [inspect_file(path) for path in (source, converted)]
        entry = max(inspected[0].entries, key=lambda entry: entry.nbytes)
        copies = [self.work / f"flipped{path.suffix}" for path in (source, converted)]
        for original, copy, found in zip((source, converted), copies, inspected, strict=True):
            offset = found.storages[entry.storage].offset
            assert offset is not None
            shutil.copyfile(original, copy)
            flip_bit(copy, offset + sum(entry.span) // 2)
        wrong = torch.load(copies[0])
        silent = not same(wrong, torch.load(source))
        self.check("one bit flipped in the .pt: torch.load says nothing and gives wrong weights", ok=silent)
        if inspected[0].checksums == "crc32":
            named = fastckpt.verify(copies[0]).damaged_tensors == [entry.name]
            self.check(f"fastckpt verify names the tensor in the .pt: {entry.name}", ok=named)
        report = fastckpt.verify(copies[1])
        place = report.findings[0].message.partition(" is not")[0] if report.findings else "nothing"
        named = entry.name in report.damaged_tensors  # Small tensors share a leaf, and all of those are named.
        try:
            fastckpt.load(copies[1])
            named = False
        except DamagedError as error:
            named = named and error.tensor in report.damaged_tensors
        self.check(f"one bit flipped in the .fckpt: load refuses, verify names it: {place}", ok=named)
        for copy in copies:
            copy.unlink()

    def convert_back(self, sources: list[Path], converted: list[Path], total: int) -> None:
        import fastckpt

        back = self.work / "back"
        back.mkdir()
        pairs = [(path, back / original.name) for path, original in zip(converted, sources, strict=True)]
        self.time("convert back to .pt, durable", total, lambda: [fastckpt.convert(a, b) for a, b in pairs])
        equal = all(filecmp.cmp(a, b, shallow=False) for a, (_, b) in zip(sources, pairs, strict=True))
        self.check("converted back: the .pt files are the same, byte for byte", ok=equal)


def warm(path: Path) -> None:
    """Read a file so that the page cache holds it."""
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


def flip_bit(path: Path, offset: int) -> None:
    """Flip the lowest bit of one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
        os.fsync(file.fileno())


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal in types, order and every bit of every tensor."""
    import torch

    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        alike = (a.dtype, a.shape, a.stride(), a.requires_grad) == (b.dtype, b.shape, b.stride(), b.requires_grad)
        return alike and torch.equal(_bits(a), _bits(b))
    if isinstance(a, dict):
        pairs = zip(a.values(), b.values(), strict=False)
        return list(a) == list(b) and same(vars_of(a), vars_of(b)) and all(same(x, y) for x, y in pairs)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a != a and b != b)


def vars_of(container: dict[Any, Any]) -> list[tuple[str, Any]]:
    """The attributes of an OrderedDict, such as ``_metadata``; a plain dict has none."""
    return list(getattr(container, "__dict__", {}).items())


def _bits(tensor: Any) -> Any:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _checkpoint_lines(facts: DemoCheckpoint) -> Iterator[str | Styled]:
    yield Styled(f"checkpoint ({facts['from']}): {', '.join(facts['files'])}, {size_text(facts['size'])}", "bold")


def _check_lines(facts: DemoCheck) -> Iterator[str | Styled]:
    yield Styled(f"  {'ok  ' if facts['ok'] else 'FAIL'}  {facts['what']}", "good" if facts["ok"] else "bad")


def _table_lines(facts: DemoDocument) -> Iterator[str | Styled]:
    yield f"time (median of {_ROUNDS}, page cache warm):"
    size = facts["checkpoint"]["size"]
    yield from columns(
        [[t["what"], duration_text(t["seconds"]), rate_text(size, t["seconds"])] for t in facts["timings"]],
        right=(1, 2),
    )
    yield Styled("everything was equal", "good") if facts["ok"] else Styled("NOT everything was equal", "bad")
